"""A fitted probe of any kind: predicts, describes itself, and says what one must know of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Integer, Shaped

from qscore._validate import QScoreError
from qscore.evaluate.probes.rows import TrainingRows, check_test_rows, checked_labels

__all__ = ["Classifier", "Probe", "Unseen", "find_unseen", "make_probe"]

NAMED = 5  # classes that a sentence names


class Classifier(Protocol):
    """What every kind of probe boils down to."""

    def classify(self, H: Float[Any, "n r"]) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return each row's class, as a place among the probe's, and the confidence in it, in [0, 1]."""


@dataclass(frozen=True)
class Unseen:
    """Classes of the rows under test of which no row was there to learn from: such rows always count as wrong."""

    classes: tuple[str, ...]
    n_rows: int


@dataclass(frozen=True)
class Probe:
    """A probe, fitted on frozen representations."""

    kind: str
    """Its name in `PROBES`."""
    title: str
    """What to call it in a sentence, e.g. ``"linear probe"``."""
    classifier: Classifier
    classes: Shaped[np.ndarray, " c"]
    """The classes it knows, sorted."""
    n_features: int
    n_train: int
    """Valid rows it was fitted on."""
    n_invalid: int
    """Training rows that were left out, since they hold NaN or infinity."""
    majority: float
    """Share of rows that always naming the commonest training class gets right: of those under test if their labels
    were given, else of the training rows."""
    probability: bool
    """Whether its confidence is meant as a probability."""
    settings: Mapping[str, Any]
    """What was chosen or found for this kind of probe."""
    remarks: tuple[str, ...]
    """What this kind of probe has to say, in sentences."""
    unseen: Unseen
    """Nothing, where the labels under test were not given."""

    def predict(self, H: Float[Any, "n r"]) -> tuple[Shaped[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return the predicted labels, and the confidence in each.

        Parameters
        ----------
        H : array or memory map of shape (n, r)
            Finite rows from the encoder whose representations the probe was fitted on.

        Returns
        -------
        labels : ndarray of shape (n,)
            Of the type of the training labels.
        confidence : ndarray of shape (n,), float64
            In [0, 1], higher is surer; see ``probability``.

        Raises
        ------
        QScoreError
            If the width is another, or a row holds NaN or infinity.
        """
        check_test_rows(H, self.n_features)
        codes, confidence = self.classifier.classify(np.asanyarray(H))
        return self.classes[codes], confidence

    def describe(self) -> dict[str, Any]:
        """Return what was fitted, on what, and how, as values that JSON can hold."""
        return {
            "kind": self.kind,
            "n_train": self.n_train,
            "n_invalid": self.n_invalid,
            "n_classes": len(self.classes),
            "majority": self.majority,
            "probability": self.probability,
            "unseen_classes": list(self.unseen.classes),
            "n_unseen": self.unseen.n_rows,
            **self.settings,
        }

    def sentences(self) -> list[str]:
        """Say what one must know before believing the probe's mistakes."""
        said = list(self.remarks)
        if self.n_invalid:
            said.append(f"Of the training rows, {self.n_invalid:,} with NaN or infinity took no part.")
        classes, n_rows = self.unseen.classes, self.unseen.n_rows
        if classes:
            named = ", ".join(classes[:NAMED]) + (", ..." if len(classes) > NAMED else "")
            said.append(
                f"{len(classes):,} of the classes under test ({named}) cannot be learned, for want of training rows: "
                f"their {n_rows:,} rows always count as wrong."
            )
        return said


def make_probe(
    training: TrainingRows,
    classifier: Classifier,
    *,
    kind: str,
    title: str,
    probability: bool,
    settings: Mapping[str, Any],
    remarks: tuple[str, ...],
    test_labels: Shaped[Any, " m"] | None = None,
) -> Probe:
    """Put a fitted classifier and what is known of it together."""
    commonest = training.classes[np.bincount(training.codes).argmax()]
    judged = training.classes[training.codes] if test_labels is None else checked_labels(test_labels, len(test_labels))
    return Probe(
        kind=kind,
        title=title,
        classifier=classifier,
        classes=training.classes,
        n_features=training.n_features,
        n_train=len(training),
        n_invalid=training.n_invalid,
        majority=float((judged == commonest).mean()),
        probability=probability,
        settings=settings,
        remarks=remarks,
        unseen=find_unseen(training.classes, judged),
    )


def find_unseen(classes: Shaped[np.ndarray, " c"], labels: Shaped[np.ndarray, " m"]) -> Unseen:
    """Find the labels that no probe can predict, because no training row has them.

    Raises
    ------
    QScoreError
        If one are names and the others numbers.

    Examples
    --------
    >>> import numpy as np
    >>> find_unseen(np.array(["cat", "dog"]), np.array(["dog", "emu", "emu"]))
    Unseen(classes=('emu',), n_rows=2)
    """
    if (classes.dtype.kind in "US") != (labels.dtype.kind in "US"):
        raise QScoreError(
            f"labels: those of the training rows are {_nature(classes)}, those of the rows under test "
            f"{_nature(labels)}; write both the same way"
        )
    unknown = ~np.isin(labels, classes)
    return Unseen(tuple(map(str, np.unique(labels[unknown]).tolist())), int(unknown.sum()))


def _nature(labels: np.ndarray) -> str:
    return "names" if labels.dtype.kind in "US" else "numbers"
