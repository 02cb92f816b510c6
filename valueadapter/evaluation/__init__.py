"""What an adapter does, measured: by data set, scale, answer and token; knows nothing of how one is trained."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Options": "arms",
        "Report": "report",
        "best_of": "judge",
        "calibrate_scale": "calibration",
        "evaluate_adapter": "arms",
        "value_score": "judge",
    },
)
