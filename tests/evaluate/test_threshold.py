import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import calibration as reference
from scipy.stats import binom

from qscore import QScoreError
from qscore.evaluate.threshold import choose_threshold, rows_needed, upper_bound

SEEDS = 1000


@pytest.mark.parametrize(("e", "n", "delta"), [(0, 59, 0.05), (2, 30, 0.1), (30, 30, 0.05), (17, 200, 0.01)])
def test_the_bound_is_where_the_binomial_tail_meets_delta(e, n, delta):
    (bound,) = upper_bound(np.array([e]), np.array([n]), delta)
    assert bound == pytest.approx(reference.upper_bound(e, n, delta), abs=1e-9)


@pytest.mark.parametrize(("wanted", "delta"), [(0.05, 0.05), (0.01, 0.1), (0.3, 0.001), (0.5, 0.5)])
def test_rows_needed_is_the_fewest_that_can_pass(wanted, delta):
    n = rows_needed(wanted, delta)
    assert reference.binomial_cdf(0, n, wanted) <= delta < reference.binomial_cdf(0, n - 1, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.2, 0.3]))
def test_the_choice_equals_tests_made_one_by_one(seed, wanted):
    rng = np.random.default_rng(seed)
    score = np.round(rng.random(380), 1)
    correct = rng.random(380) < score**0.5
    found = choose_threshold(score[:80], correct[:80], score[80:], wanted)
    made = [test.threshold for test in found.tests]
    assert made == sorted(set(made), reverse=True) and set(made) <= set(score[80:])
    assert found.threshold == reference.most_lenient(score[:80], ~correct[:80], made, wanted, 0.05)
    assert [test.passed for test in found.tests[:-1]] == [True] * (len(made) - 1)
    if found.tests and found.tests[-1].passed:
        assert found.threshold == score[80:].min()
    for test in found.tests:
        assert test.n == (score[:80] >= test.threshold).sum()
        assert test.n_wrong == (~correct[:80])[score[:80] >= test.threshold].sum()
        assert test.coverage == pytest.approx((score[80:] >= test.threshold).mean())
    assert found.coverage == pytest.approx(found.accept(score[80:]).mean())


def informative(rng, n):
    score = rng.random(n)
    return score, rng.random(n) >= 0.9 * (1 - score) ** 2, lambda t: 0.3 * (1 - t) ** 2


def uninformative(rng, n):
    return rng.random(n), rng.random(n) < 0.795, lambda t: 0.205


def constant(rng, n):
    return np.zeros(n), rng.random(n) < 0.795, lambda t: 0.205


def misleading(rng, n):
    """The higher the score, the more often wrong: P(wrong | s >= t) = (1 + t) / 5."""
    score = rng.random(n)
    return score, rng.random(n) >= 0.4 * score, lambda t: (1 + t) / 5


def tied_at_zero(rng, n):
    """Half of the rows tie at 0, and 0.3 of those are wrong; above, P(wrong | s >= t) = 0.21 - 0.2 t."""
    score = np.maximum(0.0, 2 * rng.random(n) - 1)
    wrong = np.where(score > 0, 0.41 - 0.4 * score, 0.3)
    return score, rng.random(n) >= wrong, lambda t: (0.21 - 0.2 * t) if t > 0 else 0.255


def wavy(rng, n):
    """Good, bad, good: the error rate among accepted rows rises and falls again."""
    score = rng.random(n)
    wrong = np.where((score > 0.4) & (score < 0.7), 0.5, 0.02)

    def rate(t):
        bad = max(0.0, 0.7 - max(t, 0.4))
        return (0.5 * bad + 0.02 * (1 - t - bad)) / (1 - t)

    return score, rng.random(n) >= wrong, rate


def three_levels(rng, n):
    """Only the highest of three scores will do: the two below it err far more often than is wanted."""
    score = rng.integers(0, 3, n).astype(float)
    return score, rng.random(n) >= np.array([0.4, 0.45, 0.05])[score.astype(int)], lambda t: [0.3, 0.25, 0.05][int(t)]


DRAWS = [informative, uninformative, constant, misleading, tied_at_zero, wavy, three_levels]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", [12, 60, 400])  # 11 rows are the fewest that can pass
def test_the_guarantee_holds_as_often_as_promised(draw, n):
    violations, guaranteed = 0, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        score, correct, _ = draw(rng, n)
        pool, _, rate = draw(rng, 300)
        found = choose_threshold(score, correct, pool, wanted=0.2, delta=0.1)
        if found.threshold is not None:
            guaranteed += 1
            violations += rate(found.threshold) > 0.2
    assert violations <= binom.ppf(0.999, SEEDS, 0.1)
    if draw is informative:
        assert guaranteed > {12: 0.02, 60: 0.5, 400: 0.99}[n] * SEEDS
    if draw in (uninformative, constant):
        assert violations == guaranteed > 0  # barely out of reach: whatever is accepted violates, at most 1 in 10


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(11, 80))
def test_the_sequence_is_of_the_unlabelled_rows_whatever_the_labelled_ones_are(seed, n):
    rng = np.random.default_rng(seed)
    pool = np.round(rng.random(150), 2)
    made = []
    for level in (0.0, 0.5, 9.0):  # one of them accepts nothing, one everything
        score, correct = level + np.round(rng.random(n), 2), rng.random(n) < 0.95
        made.append([test.threshold for test in choose_threshold(score, correct, pool, 0.2, delta=0.1).tests])
        assert set(made[-1]) <= set(pool)
    longest = max(made, key=len)
    assert all(longest[: len(part)] == part for part in made)


def test_without_the_sequence_the_simulation_would_notice():
    """A threshold picked because its own bound is low enough, of all of them, breaks the promise."""
    violations = 0
    for seed in range(SEEDS):
        score, correct, _ = uninformative(np.random.default_rng(seed), 400)
        wrong = np.cumsum(~correct[np.argsort(-score)])[19:]
        violations += (upper_bound(wrong, np.arange(20, 401), 0.1) <= 0.2).any()
    assert violations > binom.ppf(0.999, SEEDS, 0.1)


def test_the_interval_of_coverage_holds_for_the_threshold_chosen():
    covered, chosen = 0, 0
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        score, correct, _ = informative(rng, 500)
        found = choose_threshold(score[:300], correct[:300], score[300:], wanted=0.2)
        if found.threshold is not None:
            chosen += 1
            covered += found.coverage_low <= 1 - found.threshold <= found.coverage_high
            slack = (math.log(2 / 0.05) / (2 * 200)) ** 0.5
            assert found.coverage_low == pytest.approx(max(0, found.coverage - slack))
            assert found.coverage_high == pytest.approx(min(1, found.coverage + slack))
    assert chosen > 300 and covered >= 0.95 * chosen


def test_everything_is_accepted_where_few_rows_fail(rng):
    score, correct = rng.random(2000), np.arange(2000) % 50 > 0
    found = choose_threshold(score[:1000], correct[:1000], score[1000:], wanted=0.1)
    assert found.coverage == found.coverage_high == 1.0 and found.threshold == score[1000:].min()
    assert found.sentence.startswith(
        f"Accepting scores of {found.threshold:.6g} and above guarantees an error rate of "
    )
    assert "with 95% confidence" in found.sentence and "accepts 100.0% of the 1,000 unlabelled rows" in found.sentence
    assert [record["threshold"] for record in found.records()] == [test.threshold for test in found.tests]


def test_nothing_is_guaranteed_where_nothing_can_be(rng):
    score, correct = rng.random(600), rng.random(600) < 0.5
    none = choose_threshold(score[:300], correct[:300], score[300:], wanted=0.1, delta=0.001)
    assert none.threshold is None and (none.coverage, none.coverage_low, none.coverage_high) == (0, 0, 0)
    assert not none.accept(score).any() and len(none.tests) == 1
    assert none.sentence.startswith(
        "No threshold on this score guarantees an error rate of at most 10.0% among accepted"
    )
    assert "with 99.9% confidence no more can be said than that at most" in none.sentence
    few = choose_threshold(score[:20], np.ones(20, dtype=bool), score[300:], wanted=0.1)
    assert few.tests == () and "it takes 29 labelled rows, all correct" in few.sentence


def test_invalid_rows_are_left_out_counted_and_never_accepted(rng):
    score = rng.random(400).astype(np.float32)
    correct = np.ones(400, dtype=bool)
    score[[1, 2, 300]], correct[1] = [np.nan, np.inf, np.nan], False
    found = choose_threshold(score[:200], correct[:200], score[200:], wanted=0.1)
    assert (found.n, found.n_wrong, found.n_unlabelled, found.n_invalid) == (198, 0, 199, 3)
    assert found.sentence.endswith("3 rows without a finite score were left out.")
    accepted = found.accept(score)
    assert accepted[200:].sum() == 199 and not accepted[[1, 2, 300]].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wanted": 0.0}, "wanted: expected a share between 0 and 1, got 0.0"),
        ({"delta": 1.0}, "delta: expected a share between 0 and 1, got 1.0"),
        ({"correct": np.ones(9, bool)}, r"one value per row, got shapes \(10,\), \(9,\)"),
        ({"correct": np.ones(10, int)}, "correct: expected booleans, got int64"),
        ({"unlabelled": np.full(3, np.nan)}, "with a finite score, got 10 and 0"),
        ({"score": np.full(10, np.nan)}, "with a finite score, got 0 and 5"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"score": np.arange(10.0), "correct": np.ones(10, bool), "unlabelled": np.arange(5.0), "wanted": 0.1}
    with pytest.raises(QScoreError, match=message):
        choose_threshold(**arguments | change)
