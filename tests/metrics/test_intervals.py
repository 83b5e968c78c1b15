import numpy as np
import pytest
from scipy.stats import bootstrap, spearmanr

from qscore.metrics import bootstrap_interval, mean_interval, spearman


def test_the_interval_of_a_mean_is_that_of_scipy(rng):
    values = rng.gamma(1.0, size=300)
    found = bootstrap_interval(lambda rows: float(values[rows].mean()), 300, resamples=4000)
    expected = bootstrap((values,), np.mean, n_resamples=4000, method="percentile").confidence_interval
    width = expected.high - expected.low
    assert found.value == values.mean()
    assert abs(found.low - expected.low) < 0.1 * width and abs(found.high - expected.high) < 0.1 * width
    other = mean_interval(values)
    assert abs(found.low - other.low) < 0.1 * width


def test_statistics_of_one_seed_are_paired(rng):
    """The difference of a statistic and itself is 0 in every resample."""
    seen = [[], []]
    for rows_seen in seen:
        bootstrap_interval(lambda rows, kept=rows_seen: kept.append(rows.tolist()) or 0.0, 5, resamples=3, seed=4)
    assert seen[0] == seen[1] and len(seen[0]) == 4 and seen[0][0] == [0, 1, 2, 3, 4]


def test_resamples_without_a_value_do_not_count():
    """Of 0 and 1 the statistic is undefined unless row 0 is drawn: then it is 3."""
    found = bootstrap_interval(lambda rows: 3.0 if 0 in rows else np.nan, 2, resamples=100)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows_have_no_interval(n):
    found = bootstrap_interval(lambda rows: 1.0, n)
    assert np.isnan(found.low) and np.isnan(found.high) and (n == 1) == (found.value == 1.0)


def test_an_undefined_statistic_has_no_interval():
    found = bootstrap_interval(lambda rows: np.nan, 9)
    assert np.isnan(found.value) and np.isnan(found.low)


def test_spearman_is_scipys(rng):
    x = rng.integers(0, 9, 200).astype(float)  # with ties
    y = x + rng.normal(0, 3, 200)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_spearman_is_undefined_without_an_order():
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(spearman(np.ones(1), np.ones(1)))
