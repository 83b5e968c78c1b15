import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qscore.study.paired import bootstrap_means, interval, minimum_effect, shown_from


def naive_means(values, rows):
    """Mean of each column over the rows drawn, by hand."""
    found = []
    for column in range(values.shape[1]):
        total, count = 0.0, 0
        for row in rows:
            if not math.isnan(values[row, column]):
                total, count = total + values[row, column], count + 1
        found.append(total / count if count else math.nan)
    return found


def test_means_are_those_of_the_rows_drawn(rng, monkeypatch):
    values = rng.normal(size=(9, 3))
    values[[1, 4], 2] = np.nan
    drawn = bootstrap_means(values, resamples=20, seed=5)
    again = np.random.default_rng(5).integers(0, 9, (20, 9))
    expected = [naive_means(values, range(9)), *(naive_means(values, rows) for rows in again)]
    assert np.allclose(drawn, expected, rtol=1e-12)
    monkeypatch.setattr("qscore.study.paired.DRAWN_ROWS", 30)
    assert np.array_equal(bootstrap_means(values, resamples=20, seed=5), drawn)


def test_a_column_without_values_in_a_resample_does_not_count():
    values = np.array([[np.nan], [1.0]])
    found = interval(bootstrap_means(values, resamples=50)[:, 0])
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    nothing = interval(bootstrap_means(np.full((3, 1), np.nan), resamples=5)[:, 0])
    assert math.isnan(nothing.value) and math.isnan(nothing.low)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(200):
        differences = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=200, p=[0.2, 0.5, 0.3])
        found = interval(bootstrap_means(differences[:, None], resamples=400, seed=seed)[:, 0])
        hits += found.contains(0.1)
    assert 180 <= hits <= 198


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0, math.nan]), min_size=2, max_size=30))
def test_minimum_effect_is_by_hand(differences):
    known = [d for d in differences if not math.isnan(d)]
    found = minimum_effect(np.array(differences))
    if len(set(known)) < 2:  # no spread tells of no error
        assert math.isnan(found)
        return
    mean = sum(known) / len(known)
    variance = sum((d - mean) ** 2 for d in known) / (len(known) - 1)
    assert found == pytest.approx(2.8 * math.sqrt(variance / len(known)), abs=1e-12)


def test_rows_that_do_not_change_are_not_said_to_show_any_change():
    assert shown_from(minimum_effect(np.zeros(100))) == (
        "all rows change alike, which does not tell how small a change they would show"
    )


def test_an_effect_of_that_size_is_seen_in_four_of_five_cases():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(400, 100))
    effect = np.mean([minimum_effect(row) for row in draws])
    errors = draws.std(axis=1, ddof=1) / 10
    assert 0.75 < np.mean(draws.mean(axis=1) + effect > 1.96 * errors) < 0.85
