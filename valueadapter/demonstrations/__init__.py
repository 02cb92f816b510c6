"""Records to prompts and responses, and these to token ids and labels; knows nothing of adapters or bases."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "encode": "tokenized",
        "load_demonstrations": "sources",
        "tokenize": "tokenized",
    },
)
