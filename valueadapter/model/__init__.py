"""The wrapper: a base and its attached adapters as one `PreTrainedModel`; knows nothing of training or scores."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ValueAdapterForCausalLM": "modeling",
    },
)
