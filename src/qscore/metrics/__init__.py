"""Metrics of a whole representation that need no labels, from one pass over its rows."""

from qscore.metrics.covariance import Covariance
from qscore.metrics.intervals import Interval, mean_interval
from qscore.metrics.rows import alignment, hoyer_sparsity, uniformity
from qscore.metrics.spectrum import alpha_req, nesum, rankme, stable_rank
from qscore.metrics.summary import RepresentationMetrics, representation_metrics

__all__ = [
    "Covariance",
    "Interval",
    "RepresentationMetrics",
    "alignment",
    "alpha_req",
    "hoyer_sparsity",
    "mean_interval",
    "nesum",
    "rankme",
    "representation_metrics",
    "stable_rank",
    "uniformity",
]
