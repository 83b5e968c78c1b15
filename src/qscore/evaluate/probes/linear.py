"""A fitted linear classifier on standardised features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from scipy.special import softmax
from sklearn.preprocessing import StandardScaler

from qscore.evaluate.probes.rows import TrainingRows, block_slices

__all__ = ["LinearClassifier", "Standardizer", "fit_standardizer"]


@dataclass(frozen=True)
class Standardizer:
    """Takes each feature to mean 0 and standard deviation 1 over the training rows; a constant one to 0."""

    mean: Float[np.ndarray, " r"]
    scale: Float[np.ndarray, " r"]
    """Positive; infinite for a constant feature, so that not even rounding is left of it."""

    def __call__(self, H: Float[np.ndarray, "b r"]) -> Float[np.ndarray, "b r"]:
        """Return standardised rows in float32; the mean is taken off in the precision that the rows have."""
        kind = np.float64 if H.dtype == np.float64 else np.float32
        Z: np.ndarray = H - self.mean.astype(kind)
        Z /= self.scale.astype(kind)
        return Z.astype(np.float32, copy=False)


def fit_standardizer(training: TrainingRows) -> Standardizer:
    """Find the features' mean and population standard deviation, in float64."""
    scaler = StandardScaler()
    first = training.take(np.array([0]))
    varies = np.zeros(training.n_features, dtype=bool)
    for _, block in training.blocks():
        scaler.partial_fit(block.astype(np.float64))
        varies |= (block != first).any(axis=0)
    return Standardizer(scaler.mean_, np.where(varies, scaler.scale_, np.inf))


@dataclass(frozen=True)
class LinearClassifier:
    """softmax(z W + b), z the standardised row."""

    standardizer: Standardizer
    weights: Float[np.ndarray, "r c"]
    """W, float32."""
    bias: Float[np.ndarray, " c"]
    """b, float32."""

    def classify(self, H: Float[Any, "n r"]) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return each row's most probable class, the first among equals, and that probability."""
        codes, confidence = np.empty(len(H), dtype=np.intp), np.empty(len(H))
        for at in block_slices(*H.shape):
            Z = self.standardizer(np.asarray(H[at]))
            probability = softmax((Z @ self.weights + self.bias).astype(np.float64), axis=1)
            codes[at], confidence[at] = probability.argmax(axis=1), probability.max(axis=1)
        return codes, confidence
