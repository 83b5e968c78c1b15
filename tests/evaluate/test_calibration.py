from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import calibration as reference
from sklearn.metrics import brier_score_loss
from sklearn.model_selection import KFold

from qscore import QScoreError
from qscore.evaluate.calibration import calibrate, clopper_pearson, reliability

rows = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=10, max_size=30)


@settings(max_examples=30, deadline=None)
@given(rows)
def test_the_map_equals_the_max_min_formula(pairs):
    score, correct = (np.array(column) for column in zip(*pairs, strict=True))
    fitted = calibrate(score.astype(float), correct)
    expected = reference.falling_isotonic(score.tolist(), (~correct).tolist())
    levels = np.array(sorted(expected), dtype=float)
    np.testing.assert_allclose(fitted.probability(levels), [expected[level] for level in levels], atol=1e-12)
    assert (fitted.probability(np.array([-9.0, 9.0])) == fitted.probability(levels[[0, -1]])).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-8, 8))
def test_scaling_and_shifting_the_score_changes_nothing_but_the_knots(seed, power):
    rng = np.random.default_rng(seed)
    score, correct = np.round(rng.normal(size=60), 1), rng.random(60) < 0.7
    one, other = calibrate(score, correct), calibrate(score * 2.0**power, correct)
    assert (one.values, one.bins, one.brier, one.ece) == (other.values, other.bins, other.brier, other.ece)
    np.testing.assert_array_equal(np.array(one.knots) * 2.0**power, other.knots)


def test_reliability_by_hand_and_ties_are_never_split():
    probability = np.array([0.0] * 6 + [0.2, 0.4, 0.6, 0.8])
    wrong = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1, 1], dtype=bool)
    first, second, third = reliability(probability, wrong, bins=5)
    assert (first.n, first.n_wrong, first.predicted, first.observed) == (6, 1, 0.0, 1 / 6)
    assert (second.n, second.predicted, second.observed) == (2, pytest.approx(0.3), 0.5)
    assert (third.n, third.predicted, third.observed) == (2, pytest.approx(0.7), 1.0)
    assert (first.low, first.high) == clopper_pearson(1, 6) and third.high == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=50), st.integers(1, 12))
def test_bins_hold_every_row_once_and_no_tie_twice(pairs, bins):
    level, wrong = (np.array(column) for column in zip(*pairs, strict=True))
    found = reliability(level / 6, wrong, bins=bins)
    assert sum(row.n for row in found) == len(pairs) and sum(row.n_wrong for row in found) == wrong.sum()
    assert len(found) <= bins and all(row.low <= row.observed <= row.high for row in found)
    assert sum(row.n * row.predicted for row in found) == pytest.approx(level.sum() / 6)
    assert all(a.predicted < b.predicted for a, b in pairwise(found))


def test_without_ties_bins_are_of_equal_mass(rng):
    assert [row.n for row in reliability(rng.random(200), rng.random(200) < 0.5)] == [20] * 10


@pytest.mark.parametrize(("e", "n"), [(0, 7), (3, 7), (7, 7), (40, 200)])
def test_clopper_pearson_equals_the_definition(e, n):
    low, high = clopper_pearson(e, n)
    assert high == pytest.approx(reference.upper_bound(e, n, 0.025), abs=1e-9)
    assert low == pytest.approx(1 - reference.upper_bound(n - e, n, 0.025), abs=1e-9)


def test_brier_and_ece_are_of_rows_held_out(rng):
    score = np.round(rng.random(200), 2)
    correct = rng.random(200) < score
    fitted = calibrate(score, correct, seed=3)
    predicted, base = np.empty(200), np.empty(200)
    for fit, held in KFold(5, shuffle=True, random_state=3).split(score):
        by_level = reference.falling_isotonic(score[fit].tolist(), (~correct[fit]).tolist())
        levels = sorted(by_level)
        predicted[held] = np.interp(score[held], levels, [by_level[level] for level in levels])
        base[held] = (~correct[fit]).mean()
    assert fitted.brier == pytest.approx(brier_score_loss(~correct, predicted))
    assert fitted.brier_base == pytest.approx(brier_score_loss(~correct, base))
    assert fitted.gain.value == pytest.approx(fitted.brier_base - fitted.brier)
    assert fitted.ece == pytest.approx(sum(r.n * abs(r.predicted - r.observed) for r in fitted.bins) / 200)


def test_a_calibrated_score_is_found_to_be_one(rng):
    score = rng.random(5000)
    fitted = calibrate(score, rng.random(5000) < score)
    np.testing.assert_allclose(fitted.probability(np.linspace(0.05, 0.95, 7)), np.linspace(0.95, 0.05, 7), atol=0.07)
    assert fitted.gain.low > 0 and fitted.ece < 0.04
    assert "the score says more about failure than the base rate" in fitted.sentence
    assert [record["n"] for record in fitted.records()] == [row.n for row in fitted.bins]


def test_scores_that_say_nothing_are_not_found_to_help():
    helped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        helped += calibrate(rng.random(150), rng.random(150) < 0.7, seed=seed).gain.low > 0
    assert helped <= 3


@pytest.mark.parametrize("correct", [np.arange(40) % 4 > 0, np.ones(40, dtype=bool), np.zeros(40, dtype=bool)])
def test_a_constant_score_gives_the_base_rate(correct):
    fitted = calibrate(np.zeros(40), correct)
    assert fitted.probability(np.array([-1.0, 0.0, 5.0])).tolist() == pytest.approx([1 - correct.mean()] * 3)
    assert len(fitted.bins) <= 5 and "cannot be told apart from the base rate" in fitted.sentence


def test_invalid_rows_are_left_out_and_counted(rng):
    score, correct = rng.normal(size=50), rng.random(50) < 0.7
    score[[3, 4]], correct[[3, 4]] = [np.nan, np.inf], True
    fitted, without = calibrate(score, correct), calibrate(np.delete(score, [3, 4]), np.delete(correct, [3, 4]))
    assert (fitted.n, fitted.n_invalid, fitted.knots) == (48, 2, without.knots)
    assert fitted.sentence.endswith("; 2 rows without a finite score were left out.")
    np.testing.assert_array_equal(np.isnan(fitted.probability(score)), ~np.isfinite(score))


@pytest.mark.parametrize(
    ("score", "correct", "options", "message"),
    [
        (np.zeros(12), np.ones(11, bool), {}, r"one value per row, got shapes \(12,\), \(11,\)"),
        (np.zeros(12), np.ones(12), {}, "correct: expected booleans, got float64"),
        (np.full(12, np.nan), np.ones(12, bool), {}, "at least 10 labelled rows with a finite score, got 0"),
        (np.zeros(12), np.ones(12, bool), {"bins": 0}, "expected bins >= 1"),
    ],
)
def test_bad_input_is_refused(score, correct, options, message):
    with pytest.raises(QScoreError, match=message):
        calibrate(score, correct, **options)
