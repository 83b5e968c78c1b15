"""The scikit-learn face of Q-Score: fit on unlabeled representations; score, compress or compare any."""

from qscore.estimator.drift import Drift
from qscore.estimator.scorer import QScorer
from qscore.estimator.selector import DiscriminativeFeatureSelector

__all__ = ["DiscriminativeFeatureSelector", "Drift", "QScorer"]
