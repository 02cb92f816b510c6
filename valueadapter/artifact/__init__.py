"""What a published adapter is on disk: files, `config.json`, verification, card; knows no tensors and no torch."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ValueAdapterConfig": "config",
        "read_config": "verification",
        "verify": "verification",
    },
)
