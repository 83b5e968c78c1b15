"""What a few labels make of a score: a probability of failure, and a threshold with a guarantee.

A score ranks rows; it says neither how many of them fail nor where to stop trusting. With k labelled rows

- isotonic regression maps the score to P(wrong | score), falling in the score (Zadrozny and Elkan, KDD 2002);
- a threshold t is chosen so that P(wrong | score >= t) <= wanted, with probability at least 1 - delta over the
  labelled rows, by Learn-then-Test with fixed-sequence testing (Angelopoulos, Bates, Candes, Jordan and Lei, 2021,
  arXiv 2110.01052) and exact binomial bounds (Clopper and Pearson, Biometrika 1934).

The guarantee needs labelled and unlabelled rows to be drawn independently from one distribution, and nothing else: not
that the score is any good. Higher scores mean "more likely correct" throughout.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import beta
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import KFold

from qscore._validate import QScoreError
from qscore.metrics import Interval, mean_interval

__all__ = ["Calibration", "ReliabilityBin", "calibrate", "clopper_pearson", "labelled_rows", "reliability"]

FOLDS = 5
BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar predicted probability, and how many of them failed."""

    n: int
    n_wrong: int
    predicted: float
    """Mean predicted probability of failure."""
    observed: float
    """Share that failed."""
    low: float
    """95 % Clopper-Pearson interval of the share."""
    high: float


@dataclass(frozen=True)
class Calibration:
    """A map from a score to a probability of failure, and how far it can be trusted."""

    n: int
    """Labelled rows with a score."""
    n_wrong: int
    n_invalid: int
    """Labelled rows left out, because their score is NaN or infinite."""
    knots: tuple[float, ...]
    """Scores between which the map is linear, rising."""
    values: tuple[float, ...]
    """Probabilities of failure at the knots, falling."""
    bins: tuple[ReliabilityBin, ...]
    """Reliability of predictions for rows the map was not fitted on."""
    brier: float
    """Mean squared error of those predictions."""
    brier_base: float
    """The same, always predicting the share of wrong rows."""
    gain: Interval
    """``brier_base - brier`` with its 95 % paired bootstrap interval; positive where the score helps."""
    ece: float
    """Expected calibration error of those predictions: the bins' mean distance of predicted from observed."""

    def probability(self, score: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Return the probability of failure for scores; NaN where a score is NaN or infinite."""
        finite = np.isfinite(score)
        mapped = np.interp(np.where(finite, score, self.knots[0]), self.knots, self.values)
        return np.where(finite, mapped, np.nan)

    def records(self) -> list[dict[str, Any]]:
        """Return the reliability curve as tidy records, one per bin."""
        return [asdict(row) for row in self.bins]

    @property
    def sentence(self) -> str:
        """What was measured, in a sentence."""
        if self.gain.low > 0:
            verdict = "the score says more about failure than the base rate"
        elif self.gain.high < 0:
            verdict = "the calibrated score does worse than the base rate"
        else:
            verdict = "the calibrated score cannot be told apart from the base rate"
        left_out = f"; {self.n_invalid:,} rows without a finite score were left out" if self.n_invalid else ""
        return (
            f"From {self.n:,} labelled rows, {self.n_wrong:,} of them wrong, {verdict}: out of fold its Brier score is "
            f"{self.brier:.4f}, the base rate's {self.brier_base:.4f}, a gain of {self.gain.value:+.4f} "
            f"(95 % interval {self.gain.low:+.4f} to {self.gain.high:+.4f}), "
            f"and predictions lie {self.ece:.3f} from observed shares on average{left_out}."
        )


def calibrate(
    score: Float[np.ndarray, " k"], correct: Bool[np.ndarray, " k"], *, bins: int = BINS, seed: int = 0
) -> Calibration:
    """Map a score to a probability of failure by isotonic regression on labelled rows.

    The map is fitted on all rows. Reliability, Brier score and ECE come from rows held out in turn (five folds, those
    of the base rate too): on the rows it was fitted on, isotonic regression looks perfectly calibrated.

    Parameters
    ----------
    score : ndarray of shape (k,)
        Higher should mean "more likely correct". Rows with NaN or infinity are left out and counted.
    correct : ndarray of bool, shape (k,)
        Whether each row was classified correctly.
    bins : int, default=10
        Bins of about equally many rows in the reliability curve, at least 1; rows of equal prediction share one.
    seed : int, default=0
        Seed of folds and bootstrap, at least 0.

    Returns
    -------
    Calibration
        The map, its reliability, and a sentence.

    Raises
    ------
    QScoreError
        If shapes differ, or fewer than 10 labelled rows have a score.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> score = rng.random(2000)
    >>> fitted = calibrate(score, rng.random(2000) < score)
    >>> fitted.probability(np.array([0.1, 0.5, 0.9])).round(1).tolist()
    [0.9, 0.5, 0.1]
    """
    if bins < 1 or seed < 0:
        raise QScoreError(f"expected bins >= 1 and seed >= 0, got {bins} and {seed}")
    score, wrong, n_invalid = labelled_rows(score, correct)
    if len(score) < 2 * FOLDS:
        raise QScoreError(f"expected at least {2 * FOLDS} labelled rows with a finite score, got {len(score)}")
    predicted, base = np.empty(len(score)), np.empty(len(score))
    for fit, held in KFold(FOLDS, shuffle=True, random_state=seed).split(score):
        predicted[held] = _isotonic(score[fit], wrong[fit]).predict(score[held])
        base[held] = wrong[fit].mean()
    curve = reliability(predicted, wrong, bins=bins)
    fitted = _isotonic(score, wrong)
    squares, base_squares = (predicted - wrong) ** 2, (base - wrong) ** 2
    return Calibration(
        n=len(score),
        n_wrong=int(wrong.sum()),
        n_invalid=n_invalid,
        knots=tuple(fitted.X_thresholds_.tolist()),
        values=tuple(fitted.y_thresholds_.tolist()),
        bins=curve,
        brier=float(squares.mean()),
        brier_base=float(base_squares.mean()),
        gain=mean_interval(base_squares - squares, seed=seed),
        ece=sum(row.n * abs(row.predicted - row.observed) for row in curve) / len(score),
    )


def reliability(
    probability: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"], *, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Compare predicted probabilities of failure with what happened, in bins of about equally many rows.

    Parameters
    ----------
    probability : ndarray of shape (n,)
        Predicted probabilities of failure in [0, 1].
    wrong : ndarray of bool, shape (n,)
        Whether each row failed.
    bins : int, default=10
        Bins at most; rows of equal prediction share one.

    Returns
    -------
    tuple of ReliabilityBin
        By rising prediction.

    Examples
    --------
    >>> import numpy as np
    >>> rows = reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, False, True, False]), bins=2)
    >>> [(row.n, row.predicted, row.observed) for row in rows]
    [(2, 0.1, 0.0), (2, 0.9, 0.5)]
    """
    order = np.argsort(probability, stable=True)
    levels, first, sizes = np.unique(probability[order], return_index=True, return_counts=True)
    # A level goes where its middle row would: ties are never split, and a large one fills a bin of its own.
    middle = first + (sizes - 1) / 2
    place = np.minimum((middle * bins / len(order)).astype(int), bins - 1)
    of_row = place[np.searchsorted(levels, probability)]
    found = []
    for place_of_bin in np.unique(place):
        rows = of_row == place_of_bin
        n, n_wrong = int(rows.sum()), int(wrong[rows].sum())
        low, high = clopper_pearson(n_wrong, n)
        found.append(ReliabilityBin(n, n_wrong, float(probability[rows].mean()), n_wrong / n, low, high))
    return tuple(found)


def clopper_pearson(n_wrong: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a binomial share.

    Examples
    --------
    >>> [round(bound, 4) for bound in clopper_pearson(0, 10)]
    [0.0, 0.3085]
    """
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, n_wrong, n - n_wrong + 1)) if n_wrong else 0.0
    high = float(beta.ppf(1 - tail, n_wrong + 1, n - n_wrong)) if n_wrong < n else 1.0
    return low, high


def labelled_rows(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the finite scores, whether their rows are wrong, and how many rows were left out.

    Raises
    ------
    QScoreError
        If shapes differ or ``correct`` is not boolean.
    """
    if score.ndim != 1 or score.shape != correct.shape:
        raise QScoreError(f"score and correct: expected one value per row, got shapes {score.shape}, {correct.shape}")
    if correct.dtype != bool:
        raise QScoreError(f"correct: expected booleans, got {correct.dtype}")
    finite = np.isfinite(score)
    return score[finite].astype(np.float64), ~correct[finite], int((~finite).sum())


def _isotonic(score: np.ndarray, wrong: np.ndarray) -> Any:
    regression = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=False, out_of_bounds="clip")
    return regression.fit(score, wrong.astype(np.float64))
