"""What an adapter does, measured: by data set, scale, answer and token; knows nothing of how one is trained."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ARMS": "report",
        "Arm": "report",
        "BaseResult": "report",
        "Bootstrap": ".demonstrations.bootstrap",
        "Example": "score",
        "FineTuning": ".training.finetuning",  # an arm that is trained
        "Kept": "kept",
        "METRICS": "score",
        "Options": "arms",
        "Report": "report",
        "Score": "score",
        "answer": "answers",
        "best_of": "judge",
        "calibrate": ".training.calibration",
        "evaluate": "metrics",
        "evaluate_adapter": "arms",
        "finetuned": ".training.finetuning",
        "normalised": "metrics",
        "save_plot": "plot",
        "value_score": "judge",
    },
)
