"""A loaded adapter: its networks, how they are built, loaded and saved, where they run; knows no sum of logits."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ValueAdapter": "value_adapter",
        "build_network": "network_building",
    },
)
