"""Measures adapters on bases: metrics of one model, the arms that belong together, intervals, the report, the picture.

Knows nothing of how adapters are trained, nor of the command line.
"""

from valueadapter.evaluation.arms import Options, evaluate_adapter
from valueadapter.evaluation.bootstrap import Bootstrap
from valueadapter.evaluation.fewshot import draw, split
from valueadapter.evaluation.kept import Kept
from valueadapter.evaluation.metrics import answer, evaluate, normalised
from valueadapter.evaluation.plot import save_plot
from valueadapter.evaluation.reference import FineTuning, finetuned
from valueadapter.evaluation.report import ARMS, Arm, BaseResult, Report
from valueadapter.evaluation.score import METRICS, Example, Score
from valueadapter.scoring import Record, batches, response_bytes, scored

__all__ = [
    "ARMS",
    "METRICS",
    "Arm",
    "BaseResult",
    "Bootstrap",
    "Example",
    "FineTuning",
    "Kept",
    "Options",
    "Record",
    "Report",
    "Score",
    "answer",
    "batches",
    "draw",
    "evaluate",
    "evaluate_adapter",
    "finetuned",
    "normalised",
    "response_bytes",
    "save_plot",
    "scored",
    "split",
]
