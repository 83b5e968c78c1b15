import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import drift as reference
from scipy import stats

from qscore import QScoreError, QScorer
from qscore.estimator.drift import fisher_exact, measure_drift


def rows(rng, n, shift=0.0):
    """Dependent features: twelve classes of three features each, and noise; feature 7 may fire more often."""
    H = rng.gamma(0.3, scale=0.2, size=(n, 48))
    for row, k in zip(H, rng.integers(0, 12, size=n), strict=True):
        row[[k, 12 + k, 24 + k]] += 3.0
    H[:, 7] += 4.0 * (rng.random(n) < shift)
    return H


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_each_p_value_is_counted_out(data):
    n_before, n_now = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 60))
    before = data.draw(st.lists(st.integers(0, n_before), min_size=1, max_size=8))
    now = data.draw(st.lists(st.integers(0, n_now), min_size=len(before), max_size=len(before)))
    p = fisher_exact(np.array(before), n_before, np.array(now), n_now)
    expected = [reference.fisher_exact(b, n_before, k, n_now) for b, k in zip(before, now, strict=True)]
    np.testing.assert_allclose(p, expected, rtol=1e-9)


@pytest.mark.parametrize(("n_before", "n_now"), [(1_000, 300), (300, 1_000), (1_000_000, 10_000), (70_000, 70_000)])
def test_p_values_are_scipys(rng, n_before, n_now):
    rate = np.append(rng.uniform(0, 0.2, 200), [0.0, 1.0])
    before, now = rng.binomial(n_before, rate), rng.binomial(n_now, np.minimum(rate * rng.uniform(0.8, 1.2, 202), 1))
    expected = [
        stats.fisher_exact([[b, n_before - b], [k, n_now - k]]).pvalue for b, k in zip(before, now, strict=True)
    ]
    np.testing.assert_allclose(fisher_exact(before, n_before, now, n_now), expected, rtol=1e-6)


def test_adjusted_p_values_are_benjamini_and_hochbergs_over_the_features_that_fire(rng):
    rate = np.append(rng.uniform(0, 0.2, 30), np.zeros(10))
    drift = measure_drift(rng.binomial(500, rate), 500, rng.binomial(200, rate * 1.5), 200)
    fires = (drift.rate_before > 0) | (drift.rate_now > 0)
    assert fires[:30].any() and not fires[30:].any()
    expected = reference.benjamini_hochberg(drift.p_values[fires].tolist())
    np.testing.assert_allclose(drift.adjusted_p_values[fires], expected, rtol=1e-12)
    assert (drift.p_values[~fires] == 1).all() and (drift.adjusted_p_values[~fires] == 1).all()
    assert (
        drift.p_value == pytest.approx(drift.p_values.min() * fires.sum()) and drift.statistic == drift.p_values.min()
    )
    assert 0 < len(drift.features) < 30
    assert set(drift.features) == set(np.flatnonzero(drift.adjusted_p_values <= 0.05))
    assert (np.diff(drift.adjusted_p_values[drift.features]) >= 0).all()


def test_features_that_move_together_come_with_the_smallest_p_value_first():
    # Two adjusted p-values tie; the p-values behind them do not.
    drift = measure_drift(np.array([10, 12, 90]), 100, np.array([32, 35, 90]), 100)
    assert drift.p_values[0] > drift.p_values[1] and drift.adjusted_p_values[0] == drift.adjusted_p_values[1]
    assert drift.features.tolist() == [1, 0]


def test_the_global_test_keeps_its_level_under_dependence():
    p_values, smallest = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        drift = QScorer(epsilon=2.0, signed=False).fit(rows(rng, 300)).drift(rows(rng, 200))
        p_values.append(drift.p_value)
        smallest.append(drift.statistic)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05
    assert np.mean(np.array(smallest) <= 0.05) > 0.2  # without the correction the test would cry wolf


@pytest.mark.parametrize("signed", [False, True])
def test_a_planted_shift_is_found_in_its_feature(rng, signed):
    scorer = QScorer(epsilon=2.0, signed=signed).fit(rows(rng, 300))
    now = rows(rng, 200, shift=0.5)
    drift = scorer.drift(now)
    assert drift.features[0] == 7 and drift.p_value < 1e-6 and drift.rate_now[7] > drift.rate_before[7] + 0.2
    assert (drift.n_before, drift.n_now, drift.alpha) == (300, 200, 0.05)
    np.testing.assert_array_equal(drift.rate_before, scorer.activation_rates_)
    same = QScorer.from_counts(
        scorer.counts_, 300, epsilon=2.0, scaling=(scorer.center_, scorer.scale_) if signed else None
    )
    np.testing.assert_array_equal(same.drift(now).p_values, drift.p_values)


def test_the_stored_epsilon_and_scaling_count_the_new_rows(rng):
    H = rng.normal(size=(400, 40)) + rng.normal(size=40)
    scorer = QScorer(epsilon=2.0).fit(H)
    assert scorer.signed_
    drift = scorer.drift(H)  # the same rows again: nothing may differ, above all not the scaling
    np.testing.assert_array_equal(drift.rate_now, drift.rate_before)
    assert (drift.p_values == 1).all() and drift.p_value == 1 and not len(drift.features)


def test_nothing_that_fires_is_no_drift():
    drift = measure_drift(np.zeros(5, dtype=int), 10, np.zeros(5, dtype=int), 3)
    assert drift.p_value == drift.statistic == 1 and not len(drift.features) and not drift.rate_before.any()


def test_bad_input_is_refused(rng):
    scorer = QScorer(epsilon=2.0).fit(rows(rng, 100))
    with pytest.raises(ValueError, match="expecting 48 features"):
        scorer.drift(np.ones((3, 7)))
    with pytest.raises(ValueError, match="contains NaN"):
        scorer.drift(np.full((3, 48), np.nan))
    for alpha in (0, 1, float("nan")):
        with pytest.raises(QScoreError, match="alpha: expected a number between 0 and 1"):
            scorer.drift(rows(rng, 10), alpha=alpha)
