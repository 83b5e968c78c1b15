"""The cure: terms beside a self-supervised loss that raise the quality of representations."""

from qscore.regularizer.lasso import LassoRegularizer
from qscore.regularizer.quality import QScoreRegularizer

__all__ = ["LassoRegularizer", "QScoreRegularizer"]
