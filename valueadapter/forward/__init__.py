"""One pass of base and networks: what each reads, what caches keep, what is added; knows no attached adapters."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ValueAdapterCache": "cache",
    },
)
