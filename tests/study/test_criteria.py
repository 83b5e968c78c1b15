import itertools
import math

import numpy as np
import pytest

from qscore.study.criteria import CRITERIA, correlations, goodness, regret


def naive_kendall(x, y):
    agree = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        agree, untied_x, untied_y = agree + a * b, untied_x + (a != 0), untied_y + (b != 0)
    return agree / math.sqrt(untied_x * untied_y) if untied_x and untied_y else math.nan


def naive_ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def naive_spearman(x, y):
    a, b = (np.array(naive_ranks(values)) - (len(x) + 1) / 2 for values in (x, y))
    norm = math.sqrt(sum(a * a) * sum(b * b))
    return float(sum(a * b) / norm) if norm else math.nan


def test_correlations_and_their_intervals_are_by_hand():
    x = np.array([1.0, 2.0, 2.0, 4.0, 3.0, np.nan, 6.0])
    y = np.array([0.1, 0.2, 0.3, 0.4, 0.4, 0.9, 0.5])
    found = correlations(x, y, resamples=200, seed=4)
    x, y = x[~np.isnan(x)], y[[0, 1, 2, 3, 4, 6]]
    drawn = np.random.default_rng(4).integers(0, 6, (200, 6))
    for name, naive in (("spearman", naive_spearman), ("kendall", naive_kendall)):
        resampled = [value for rows in drawn if not math.isnan(value := naive(x[rows], y[rows]))]
        low, high = np.quantile(resampled, [0.025, 0.975])
        assert found[name].value == pytest.approx(naive(x, y))
        assert (found[name].low, found[name].high) == (pytest.approx(low), pytest.approx(high))


def test_few_checkpoints_have_no_interval_and_fewer_no_correlation():
    four = correlations(np.arange(4.0), np.array([0.1, 0.3, 0.2, 0.4]))
    assert four["spearman"].value == pytest.approx(0.8) and math.isnan(four["spearman"].low)
    assert correlations(np.arange(2.0), np.arange(2.0)) == {"spearman": None, "kendall": None}
    assert correlations(np.zeros(6), np.arange(6.0)) == {"spearman": None, "kendall": None}
    assert correlations(np.arange(6.0), np.ones(6)) == {"spearman": None, "kendall": None}


def test_a_perfect_order_has_no_interval_as_all_resamples_agree():
    found = correlations(np.arange(6.0), np.arange(6.0) ** 2, resamples=100)
    for name in ("spearman", "kendall"):
        assert found[name].value == pytest.approx(1) and math.isnan(found[name].low) and math.isnan(found[name].high)


def test_regret_is_what_the_choice_falls_short():
    accuracy = np.array([0.5, 0.9, 0.7])
    assert regret(np.array([1.0, 2.0, 3.0]), accuracy) == pytest.approx(0.2)
    assert regret(np.array([np.nan, 2.0, np.nan]), accuracy) == 0.0
    assert regret(np.array([3.0, 3.0, 1.0]), accuracy) == pytest.approx(0.2)  # one of two, taken blindly
    assert math.isnan(regret(np.full(3, np.nan), accuracy))


def test_every_criterion_has_a_fixed_sign_and_a_reason():
    signs = {name: np.argmax(goodness(name, np.array([0.2, 1.0, 5.0]))) for name in CRITERIA}
    assert {name for name, best in signs.items() if best == 0} == {"uniformity", "dead", "alignment"}
    assert {name for name, best in signs.items() if best == 1} == {"alpha_req"}
    assert all(row.why and row.better in ("higher", "lower", "near 1") for row in CRITERIA.values())
    assert math.isnan(goodness("rankme", np.array([np.inf]))[0])
