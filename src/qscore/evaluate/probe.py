"""The linear probe: what a linear classifier on frozen embeddings gets right."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from qscore._validate import QScoreError

__all__ = ["Probe", "fit_probe"]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
MAX_ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe."""

    pipeline: Pipeline
    strength: float
    """The inverse regularisation strength C chosen on a split of the training rows."""
    n_train: int
    converged: bool
    """Whether the final fit reached its optimum within the iterations allowed."""

    def predict(self, H: Float[np.ndarray, "n r"]) -> tuple[Shaped[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return the predicted labels and their softmax probabilities."""
        probability = self.pipeline.predict_proba(H)
        best = probability.argmax(axis=1)
        return self.pipeline.classes_[best], probability.max(axis=1)


def fit_probe(H: Float[np.ndarray, "n r"], labels: Shaped[np.ndarray, " n"], *, seed: int = 0) -> Probe:
    """Fit multinomial logistic regression on standardised embeddings.

    The strength is chosen once, on a fifth of the training rows held out; the probe is then fitted on all of them.

    Parameters
    ----------
    H : ndarray of shape (n, r)
        Training embeddings.
    labels : ndarray of shape (n,)
        Integers or strings, at least two classes.
    seed : int, default=0
        Seed of the split.

    Returns
    -------
    Probe
        The fitted probe.

    Raises
    ------
    QScoreError
        If there are fewer than two classes, or a class too small to split.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise QScoreError(f"the probe needs at least two classes, got {len(classes)}: {classes.tolist()}")
    held_out = max(len(classes), round(0.2 * len(labels)))
    if counts.min() < 2 or len(labels) - held_out < len(classes):
        smallest = classes[counts.argmin()]
        raise QScoreError(
            f"the probe needs more labelled rows: {len(labels)} rows for {len(classes)} classes, "
            f"{counts.min()} of class {smallest}"
        )
    fit_rows, choice_rows = train_test_split(
        np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels
    )
    accuracies = []
    for strength in STRENGTHS:
        pipeline, _ = _fit(H[fit_rows], labels[fit_rows], strength)
        accuracies.append(float((pipeline.predict(H[choice_rows]) == labels[choice_rows]).mean()))
    strength = STRENGTHS[int(np.argmax(accuracies))]  # the smallest among equals
    pipeline, converged = _fit(H, labels, strength)
    return Probe(pipeline, strength, len(labels), converged)


def _fit(H: np.ndarray, labels: np.ndarray, strength: float) -> tuple[Pipeline, bool]:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        pipeline.fit(H, labels)
    return pipeline, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
