import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ranking as reference
from sklearn.metrics import average_precision_score, roc_auc_score

from qscore import QScoreError
from qscore.evaluate import bootstrap, failure_statistics, risk_coverage

rows = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=7).filter(
    lambda pairs: len({correct for _, correct in pairs}) == 2
)


@settings(max_examples=150, deadline=None)
@given(rows)
def test_statistics_equal_the_definitions(pairs):
    score, correct = (list(column) for column in zip(*pairs, strict=True))
    found = failure_statistics(np.array(score, dtype=float), np.array(correct))
    expected = {
        "auroc": reference.auroc(score, correct),
        "ap_correct": reference.average_precision(score, correct),
        "ap_wrong": reference.average_precision([-s for s in score], [not c for c in correct]),
        "aurc": reference.aurc(score, correct),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    coverage, risk = risk_coverage(np.array(score, dtype=float), np.array(correct))
    assert risk.mean() == pytest.approx(expected["aurc"]) and coverage[-1] == 1.0
    assert risk[-1] == pytest.approx(1 - np.mean(correct))


def test_statistics_equal_scikit_learn(rng):
    score, correct = np.round(rng.normal(size=2000), 1), rng.random(2000) < 0.7
    found = failure_statistics(score, correct)
    assert found["auroc"] == pytest.approx(roc_auc_score(correct, score))
    assert found["ap_correct"] == pytest.approx(average_precision_score(correct, score))
    assert found["ap_wrong"] == pytest.approx(average_precision_score(~correct, -score))


def test_a_constant_score_is_worth_the_base_rate():
    correct = np.array([True] * 7 + [False] * 3)
    expected = {"auroc": 0.5, "ap_correct": 0.7, "ap_wrong": 0.3, "aurc": 0.3}
    assert failure_statistics(np.zeros(10), correct) == pytest.approx(expected)


def test_resamples_weigh_rows_as_often_as_they_were_drawn(rng):
    score, correct = np.round(rng.normal(size=60), 1), rng.random(60) < 0.7
    statistics, _ = bootstrap({"s": score}, correct, resamples=200, seed=3)
    generator = np.random.default_rng(3)
    drawn = [generator.integers(0, 60, 60) for _ in range(200)]
    for name, interval in statistics["s"].items():
        values = [failure_statistics(score[i], correct[i])[name] for i in drawn]
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
        assert interval.value == failure_statistics(score, correct)[name]


def test_differences_are_paired(rng):
    score, correct = rng.normal(size=300), rng.random(300) < 0.7
    statistics, differences = bootstrap({"a": score, "same": 2 * score + 1}, correct, reference="a", resamples=50)
    assert statistics["a"] == statistics["same"]
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in differences["same"].values())


def test_the_difference_is_the_reference_minus_the_other():
    rng = np.random.default_rng(0)
    correct = rng.random(500) < 0.5
    statistics, differences = bootstrap(
        {"good": correct + 0.5 * rng.random(500), "poor": rng.random(500)}, correct, reference="good", resamples=50
    )
    gap = statistics["good"]["auroc"].value - statistics["poor"]["auroc"].value
    assert differences["poor"]["auroc"].value == pytest.approx(gap) and differences["poor"]["auroc"].low > 0.3


def test_null_scores_keep_chance_inside_the_interval_as_often_as_promised():
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        score, correct = rng.normal(size=400), rng.random(400) < 0.7
        statistics, _ = bootstrap({"s": score}, correct, resamples=400, seed=seed)
        inside += statistics["s"]["auroc"].contains(0.5)
    assert 0.92 <= inside / 200 <= 0.98


@pytest.mark.parametrize("outcome", [True, False])
def test_one_outcome_only_is_undefined(outcome):
    found = failure_statistics(np.arange(4.0), np.full(4, outcome))
    assert all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("score", "correct", "message"),
    [
        (np.zeros(3), np.ones(4, dtype=bool), r"one value per row, got shapes \(3,\), \(4,\)"),
        (np.array([1.0, np.nan]), np.array([True, False]), "1 of 2 values are not finite"),
    ],
)
def test_bad_input_is_refused(score, correct, message):
    with pytest.raises(QScoreError, match=message):
        failure_statistics(score, correct)
