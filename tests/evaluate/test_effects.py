import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import claims as reference
from sklearn.metrics import roc_auc_score

from qscore import QScoreError
from qscore.evaluate.effects import STATISTICS, effects, resampled_weights

rows = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 3).map(float)), st.booleans(), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


def columns(triples):
    values, correct, classes = zip(*triples, strict=True)
    return np.array([math.nan if v is None else v for v in values]), np.array(correct), np.array(classes)


@settings(max_examples=150, deadline=None)
@given(rows, st.booleans())
def test_statistics_equal_the_definitions(triples, within):
    values, correct, classes = columns(triples)
    found = effects({"x": values}, correct, classes if within else None, resamples=0)["x"]
    lists = [list(column) for column in zip(*triples, strict=True)]
    expected, n_classes = reference.compare(*lists[:2], lists[2] if within else None)
    np.testing.assert_allclose(found.drawn[0], expected, rtol=1e-10, atol=1e-12)
    assert found.n_classes == n_classes
    counted = [c for c in range(3) if {True, False} <= {ok for v, ok, d in triples if v is not None and (d == c)}]
    if within:
        assert found.n_correct == sum(ok for v, ok, c in triples if v is not None and c in counted)
        assert found.n_wrong == sum(not ok for v, ok, c in triples if v is not None and c in counted)


@settings(max_examples=25, deadline=None)
@given(rows, st.integers(0, 2**32 - 1))
def test_resamples_weigh_rows_as_often_as_they_were_drawn(triples, seed):
    values, correct, classes = columns(triples)
    found = effects({"x": values}, correct, classes, resamples=5, seed=seed)["x"]
    for drawn, weights in zip(found.drawn, resampled_weights(classes, 5, seed), strict=True):
        repeated = [row for row, weight in zip(triples, weights, strict=True) for _ in range(weight)]
        expected, _ = reference.compare(*(list(column) for column in zip(*repeated, strict=True)))
        np.testing.assert_allclose(drawn, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_resamples_hold_as_many_rows_of_each_class(classes, seed):
    classes = np.array(classes)
    first, *others = resampled_weights(classes, 6, seed)
    assert (first == 1).all() and len(others) == 6
    for weights in others:
        np.testing.assert_array_equal(np.bincount(classes, weights), np.bincount(classes))


def test_every_row_is_drawn_equally_often():
    classes = np.array([0, 1, 1, 0, 1, 2])
    drawn = sum(resampled_weights(classes, 4000, seed=1)) / 4001
    np.testing.assert_allclose(drawn, 1.0, atol=0.06)


def test_cliffs_delta_is_twice_the_auroc_minus_one(rng):
    values, correct = rng.poisson(3, 500).astype(float), rng.random(500) < 0.7
    delta = effects({"x": values}, correct, resamples=0)["x"].drawn[0, STATISTICS.index("cliffs_delta")]
    assert delta == pytest.approx(2 * roc_auc_score(correct, values) - 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-8, 8))
def test_order_of_rows_and_scale_of_values_change_nothing_they_should_not(seed, power):
    rng = np.random.default_rng(seed)
    values, correct, classes = rng.poisson(3, 60).astype(float), rng.random(60) < 0.6, rng.integers(0, 3, 60)
    one = effects({"x": values}, correct, classes, resamples=0)["x"].drawn[0]
    order = rng.permutation(60)
    other = effects({"x": values[order] * 2.0**power}, correct[order], classes[order], resamples=0)["x"].drawn[0]
    np.testing.assert_allclose(other, [*(one[:3] * 2.0**power), *one[3:]], rtol=1e-12)


def test_within_class_is_blind_to_what_classes_alone_bring_about(rng):
    """Easy classes have high values: overall there is an effect, within class there is none."""
    classes = np.repeat([0, 1], 1000)
    correct = rng.random(2000) < np.where(classes == 0, 0.9, 0.4)
    values = rng.normal(size=2000) + np.where(classes == 0, 2.0, 0.0)
    overall = effects({"x": values}, correct, resamples=300)["x"].drawn
    within = effects({"x": values}, correct, classes, resamples=300)["x"].drawn
    k = STATISTICS.index("cliffs_delta")
    assert np.quantile(overall[1:, k], 0.025) > 0.3
    assert np.quantile(within[1:, k], 0.025) < 0 < np.quantile(within[1:, k], 0.975)


@pytest.mark.parametrize("within", [False, True])
def test_null_values_keep_zero_inside_the_interval_as_often_as_promised(within):
    inside = np.zeros(3)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, 4, 400)
        values, correct = rng.poisson(2 + classes if within else 3, 400).astype(float), rng.random(400) < 0.7
        drawn = effects({"x": values}, correct, classes if within else None, resamples=300, seed=seed)["x"].drawn
        low, high = np.quantile(drawn[1:, 2:], [0.025, 0.975], axis=0)
        inside += (low <= 0) & (high >= 0)
    assert (inside / 200 >= 0.92).all() and (inside / 200 <= 0.98).all()


def test_equal_values_differ_by_nothing_exactly():
    values = np.full(60, 0.1)
    found = effects({"x": values}, np.arange(60) % 3 > 0, resamples=20)["x"].drawn
    assert found[:, 2:].tolist() == [[0.0, 0.0, 0.0]] * 21


@pytest.mark.parametrize(
    ("values", "correct", "classes", "message"),
    [
        (np.zeros(3), np.ones(4, bool), None, r"x: expected one value per row, got shapes \(3,\) and \(4,\)"),
        (np.zeros(3), np.ones(3, bool), np.zeros(2, int), r"classes: expected one value per row, got shapes \(2,\)"),
        (np.zeros(3), np.ones(3), None, "correct: expected booleans, got float64"),
    ],
)
def test_bad_input_is_refused(values, correct, classes, message):
    with pytest.raises(QScoreError, match=message):
        effects({"x": values}, correct, classes)
