"""A threshold on a score for a wanted error rate, with a guarantee that holds for finitely many labelled rows.

For a threshold t let R(t) = P(wrong | score >= t). Of the n labelled rows with score >= t, e are wrong; given n, e is
binomial with rate R(t), so that R(t) > wanted is rejected at level delta where

    P(Binomial(n, wanted) <= e) <= delta

or, the same, where Clopper and Pearson's upper bound of e / n at confidence 1 - delta is at most the wanted rate.

Thresholds are tested one after the other, from strict to lenient, each at level delta, until the first that is not
rejected; the last that was is chosen. A wrong threshold is chosen only if the first wrong one in the sequence was
rejected, which has probability delta at most, however many are tested. This is Learn-then-Test with fixed-sequence
testing (Angelopoulos, Bates, Candes, Jordan and Lei, 2021, arXiv 2110.01052). The sequence must not depend on the
labelled rows, so its thresholds are quantiles of the unlabelled ones, and so is where it starts.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.stats import beta

from qscore._validate import QScoreError
from qscore.evaluate.calibration import labelled_rows

__all__ = ["Threshold", "ThresholdTest", "choose_threshold", "rows_needed", "upper_bound"]

STEPS = 100
ROOM = 3  # the sequence starts where this many times the fewest useful rows are expected: room for a few mistakes
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ThresholdTest:
    """One threshold of the sequence, tested."""

    threshold: float
    coverage: float
    """Share of the unlabelled rows with such a score."""
    n: int
    """Labelled rows accepted."""
    n_wrong: int
    bound: float
    """Upper bound of the error rate among accepted rows, at confidence 1 - delta for this threshold alone."""
    passed: bool


@dataclass(frozen=True)
class Threshold:
    """The most lenient threshold with a guarantee, or none, and what it costs."""

    wanted: float
    """The error rate wanted among accepted rows."""
    delta: float
    """The guarantee fails with at most this probability."""
    threshold: float | None
    """Rows with a score at or above it are accepted; None where nothing can be guaranteed."""
    n: int
    """Labelled rows with a score."""
    n_wrong: int
    n_needed: int
    """The fewest accepted labelled rows, all correct, that could guarantee anything."""
    n_unlabelled: int
    """Unlabelled rows with a score."""
    n_invalid: int
    """Rows of either kind left out, because their score is NaN or infinite."""
    coverage: float
    """Share of the unlabelled rows accepted."""
    coverage_low: float
    """95 % interval of the share of rows to come, by Dvoretzky, Kiefer, Wolfowitz and Massart's inequality: it holds
    for all thresholds at once, and so for the one chosen. 0 to 0 where nothing is accepted."""
    coverage_high: float
    tests: tuple[ThresholdTest, ...]
    """In the order in which they were made; the last may have failed."""

    def accept(self, score: Float[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
        """Tell which scores are accepted; NaN and infinity never are."""
        if self.threshold is None:
            return np.zeros(len(score), dtype=bool)
        accepted: np.ndarray = np.isfinite(score) & (score.astype(np.float64) >= self.threshold)
        return accepted

    def records(self) -> list[dict[str, Any]]:
        """Return the tests as tidy records."""
        return [asdict(test) for test in self.tests]

    @property
    def sentence(self) -> str:
        """What is guaranteed and what it costs, or that nothing is."""
        confidence = f"{100 * (1 - self.delta):g}% confidence"
        goal = f"an error rate of at most {self.wanted:.1%} among accepted rows"
        left_out = f" {self.n_invalid:,} rows without a finite score were left out." if self.n_invalid else ""
        if self.threshold is None:
            return f"No threshold on this score guarantees {goal}: {self._reason(confidence)}.{left_out}"
        chosen = [test for test in self.tests if test.passed][-1]
        return (
            f"Accepting scores of {self.threshold:.6g} and above guarantees {goal} with {confidence}, for rows drawn "
            f"like the {self.n:,} labelled ones ({chosen.n_wrong:,} of the {chosen.n:,} accepted among them are wrong) "
            f"and accepts {self.coverage:.1%} of the {self.n_unlabelled:,} unlabelled rows (95 % interval for rows to "
            f"come {self.coverage_low:.1%} to {self.coverage_high:.1%}).{left_out}"
        )

    def _reason(self, confidence: str) -> str:
        if not self.tests:
            return (
                f"it takes {self.n_needed:,} labelled rows, all correct, to guarantee it with {confidence}, and there "
                f"are {self.n:,}"
            )
        first = self.tests[0]
        return (
            f"of the {first.n:,} labelled rows with the highest scores {first.n_wrong:,} are wrong, and with "
            f"{confidence} no more can be said than that at most {first.bound:.1%} of such rows are"
        )


def choose_threshold(
    score: Float[np.ndarray, " k"],
    correct: Bool[np.ndarray, " k"],
    unlabelled: Float[np.ndarray, " m"],
    wanted: float,
    *,
    delta: float = 0.05,
) -> Threshold:
    """Choose the most lenient threshold whose accepted rows are guaranteed to have a wanted error rate.

    With probability at least ``1 - delta`` over the draw of the labelled rows, ``P(wrong | score >= threshold) <=
    wanted``, whatever the score is worth, if labelled and unlabelled rows are drawn independently from one distribution
    (a random choice of rows to label does). Thresholds below the lowest unlabelled score are not considered.

    Parameters
    ----------
    score : ndarray of shape (k,)
        Of labelled rows; higher should mean "more likely correct".
    correct : ndarray of bool, shape (k,)
        Whether each was classified correctly.
    unlabelled : ndarray of shape (m,)
        Scores of other rows, none of them labelled. In all arrays NaN and infinity are left out and counted.
    wanted : float
        Error rate among accepted rows, in (0, 1).
    delta : float, default=0.05
        Probability that the guarantee may fail, in (0, 1).

    Returns
    -------
    Threshold
        The threshold, or None; what it costs; the tests made.

    Raises
    ------
    QScoreError
        If shapes differ, ``wanted`` or ``delta`` is outside (0, 1), or no labelled or no unlabelled row has a score.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> score = rng.random(21000)
    >>> correct = rng.random(21000) < score  # P(wrong | score >= t) = (1 - t) / 2
    >>> chosen = choose_threshold(score[:1000], correct[:1000], score[1000:], wanted=0.2)
    >>> chosen.threshold > 0.6, bool((~correct[chosen.accept(score)]).mean() < 0.2)
    (True, True)
    >>> choose_threshold(score[:20], correct[:20], score[1000:], wanted=0.1).sentence
    'No threshold on this score guarantees an error rate of at most 10.0% among accepted rows: it takes 29 labelled \
rows, all correct, to guarantee it with 95% confidence, and there are 20.'
    """
    for name, value in (("wanted", wanted), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise QScoreError(f"{name}: expected a share between 0 and 1, got {value!r}")
    score, wrong, n_invalid = labelled_rows(score, correct)
    finite = np.isfinite(unlabelled)
    pool = np.sort(unlabelled[finite].astype(np.float64))
    if not len(score) or not len(pool):
        raise QScoreError(
            f"expected labelled and unlabelled rows with a finite score, got {len(score)} and {len(pool)}"
        )
    needed = rows_needed(wanted, delta)
    tests = _test_in_sequence(score, wrong, pool, wanted, delta, needed)
    passed = [test for test in tests if test.passed]
    coverage = passed[-1].coverage if passed else 0.0
    slack = math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * len(pool))) if passed else 0.0
    return Threshold(
        wanted=float(wanted),
        delta=float(delta),
        threshold=passed[-1].threshold if passed else None,
        n=len(score),
        n_wrong=int(wrong.sum()),
        n_needed=needed,
        n_unlabelled=len(pool),
        n_invalid=n_invalid + int((~finite).sum()),
        coverage=coverage,
        coverage_low=max(0.0, coverage - slack),
        coverage_high=min(1.0, coverage + slack),
        tests=tests,
    )


def upper_bound(
    n_wrong: Integer[np.ndarray, " t"], n: Integer[np.ndarray, " t"], delta: float
) -> Float[np.ndarray, " t"]:
    """Return Clopper and Pearson's upper bounds of binomial rates: below the rate with probability at most delta.

    Examples
    --------
    >>> upper_bound(np.array([0, 3, 0]), np.array([59, 3, 0]), 0.05).round(4).tolist()
    [0.0495, 1.0, 1.0]
    """
    bounds: np.ndarray = np.where(n_wrong < n, beta.ppf(1 - delta, n_wrong + 1, np.maximum(n - n_wrong, 1)), 1.0)
    return bounds


def rows_needed(wanted: float, delta: float) -> int:
    """Return the fewest rows, all correct, whose upper bound is at most the wanted rate: (1 - wanted)^n <= delta.

    Examples
    --------
    >>> rows_needed(0.05, 0.05)
    59
    """
    return math.ceil(math.log(delta) / math.log1p(-wanted))


def _test_in_sequence(
    score: np.ndarray, wrong: np.ndarray, pool: np.ndarray, wanted: float, delta: float, needed: int
) -> tuple[ThresholdTest, ...]:
    """Test thresholds from strict to lenient until one is not rejected."""
    if len(score) < needed:
        return ()
    thresholds = _sequence(pool, len(score), needed)
    order = np.argsort(score)
    below = np.searchsorted(score[order], thresholds)
    n = len(score) - below
    n_wrong = wrong.sum() - np.concatenate([[0], np.cumsum(wrong[order])])[below]
    bounds = upper_bound(n_wrong, n, delta)
    failed = np.flatnonzero(bounds > wanted)
    made = int(failed[0]) + 1 if len(failed) else len(thresholds)
    coverage = 1 - np.searchsorted(pool, thresholds) / len(pool)
    columns = (thresholds, coverage, n, n_wrong, bounds, bounds <= wanted)
    return tuple(ThresholdTest(*row) for row in zip(*(column[:made].tolist() for column in columns), strict=True))


def _sequence(pool: np.ndarray, n_labelled: int, needed: int) -> np.ndarray:
    """Return thresholds from strict to lenient, distinct quantiles of the unlabelled scores.

    The first is expected to accept three times the fewest rows that can pass, or half of the labelled ones where those
    are fewer, though never fewer than can pass. Only the number of labelled rows enters, not what they are.
    """
    start = max(min(ROOM * needed, n_labelled / 2), needed) / n_labelled
    shares = np.linspace(start, 1.0, STEPS)
    places = len(pool) - np.ceil(shares * len(pool)).astype(int)
    thresholds: np.ndarray = np.unique(pool[places.clip(0, len(pool) - 1)])[::-1]
    return thresholds
