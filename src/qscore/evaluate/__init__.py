"""The verdict: does a label-free score predict the linear probe's mistakes, and does it beat its rivals."""

from qscore.evaluate.calibrated import CalibratedScores, calibrate_scores
from qscore.evaluate.evaluation import evaluate_scores
from qscore.evaluate.ranking import Interval, bootstrap, failure_statistics, risk_coverage
from qscore.evaluate.scores import SCORES, Score

__all__ = [
    "SCORES",
    "CalibratedScores",
    "Interval",
    "Score",
    "bootstrap",
    "calibrate_scores",
    "evaluate_scores",
    "failure_statistics",
    "risk_coverage",
]
