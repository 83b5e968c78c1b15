"""What compression gives: the points of the curve, the verdicts, and both in sentences made from the numbers."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MARGIN", "CompressionCurve", "CurvePoint", "Verdict"]

MARGIN = -0.01


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy of a linear classifier on one selection of the features."""

    keep: float
    """Share of the features, in (0, 1]."""
    n_kept: int
    """Features, or principal components."""
    method: str
    """``rank``: the ranks of A that ``keep`` takes; ``random``: the mean of the random subsets; ``variance``: the
    highest variance; ``rate``: the highest A; ``pca``: the first principal components."""
    accuracy: float
    """Share of the test rows classified correctly."""
    low: float
    """95 % bootstrap interval over test rows; for ``random`` the 5th percentile over subsets."""
    high: float
    """As ``low``; for ``random`` the 95th percentile over subsets."""
    change: float
    """Accuracy minus that of all features on the same rows."""
    change_low: float
    """95 % paired bootstrap interval; for ``random`` the percentiles over subsets."""
    change_high: float


@dataclass(frozen=True)
class Verdict:
    """Whether a share of the features does, by the rule fixed beforehand."""

    keep: float
    n_kept: int
    n_features: int
    n_test: int
    accuracy: float
    full_accuracy: float
    change: float
    change_low: float
    change_high: float
    random_mean: float
    random_high: float
    """95th percentile over the random subsets."""
    n_random: int

    @property
    def holds(self) -> bool:
        """The change's lower bound is above -1 point, and the accuracy above random's 95th percentile."""
        return self.change_low > MARGIN and self.accuracy > self.random_high

    @property
    def sentence(self) -> str:
        """What was measured, in a sentence."""
        reasons = []
        if self.change_low <= MARGIN:
            reasons.append("the interval reaches down to a loss of 1 point or more")
        if self.accuracy <= self.random_high:
            reasons.append("as many random features do as well")
        return (
            f"Compression {'holds' if self.holds else 'does not hold'} at keep = {self.keep:g}"
            f"{' (' + ', and '.join(reasons) + ')' if reasons else ''}: with {self.n_kept:,} of {self.n_features:,} "
            f"features, ranked without labels, ridge classifies {self.accuracy:.1%} of {self.n_test:,} test rows "
            f"correctly, with all of them {self.full_accuracy:.1%}, a change of {100 * self.change:+.1f} points "
            f"(95 % interval {100 * self.change_low:+.1f} to {100 * self.change_high:+.1f}); {self.n_random} random "
            f"subsets of that size reach {self.random_mean:.1%} on average, their 95th percentile is "
            f"{self.random_high:.1%}."
        )


@dataclass(frozen=True)
class CompressionCurve:
    """The curve of every selection over the share kept, and the verdicts."""

    n_train: int
    """Valid training rows."""
    n_test: int
    """Valid test rows."""
    n_features: int
    n_classes: int
    """Classes among the training rows."""
    n_invalid: int
    """Training and test rows left out for NaN or infinity."""
    n_unseen: int
    """Test rows whose class no training row has; they count as wrong."""
    strength: float
    """The ridge penalty chosen, as a multiple of the features' mean squared deviation (per feature, over all rows)."""
    accuracy: float
    """With all features."""
    majority: float
    """The share of the test rows in the training rows' most common class."""
    points: tuple[CurvePoint, ...]
    verdicts: tuple[Verdict, ...]
    """For the 45 % band and for keep = 0.6."""

    def records(self) -> list[dict[str, Any]]:
        """Return the curve as tidy records, one per share and method."""
        return [asdict(point) for point in self.points]

    def sentences(self) -> list[str]:
        """Say what was measured."""
        said = [verdict.sentence for verdict in self.verdicts]
        if self.accuracy <= self.majority:
            said.append(
                f"With all features ridge is right on {self.accuracy:.1%} of the rows, no more than always naming the "
                f"most common class ({self.majority:.1%}): on these rows the verdict means nothing."
            )
        if self.n_unseen:
            said.append(f"{self.n_unseen:,} test rows are of classes no training row has, and count as wrong.")
        if self.n_invalid:
            said.append(f"{self.n_invalid:,} rows with NaN or infinity were left out.")
        return said
