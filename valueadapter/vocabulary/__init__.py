"""Two tokenizers and one text: byte view, map, the network's own tokens of it; knows no model, and no torch."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ModelVocabulary": "model_vocabulary",
        "VocabularyAlignment": "alignment",
        "assess": "compatibility",
    },
)
