import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ranking as reference
from sklearn.metrics import average_precision_score, roc_auc_score

from qscore import QScoreError, discriminative_features, scan
from qscore.evaluate import SCORES, bootstrap, failure_statistics, risk_coverage
from qscore.evaluate.ranking import STATISTICS, draw_spread
from qscore.evaluate.scores import Evidence

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


tied = st.sampled_from([-np.pi, -1.0, 0.0, 1e-300, 0.1, 0.3, 1e300])
scored = st.lists(st.tuples(st.one_of(tied, st.floats(-1e6, 1e6)), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({correct for _, correct in pairs}) == 2
)


@settings(max_examples=200, deadline=None)
@given(scored)
def test_statistics_equal_scikit_learn(pairs):
    score, correct = (np.array(column) for column in zip(*pairs, strict=True))
    found = failure_statistics(score, correct)
    assert found["auroc"] == pytest.approx(roc_auc_score(correct, score))
    assert found["ap_correct"] == pytest.approx(average_precision_score(correct, score))
    assert found["ap_wrong"] == pytest.approx(average_precision_score(~correct, -score))


@pytest.mark.parametrize("decimals", [0, 2, 9])
def test_statistics_equal_scikit_learn_on_many_rows(rng, decimals):
    score, correct = np.round(rng.normal(size=5000), decimals), rng.random(5000) < 0.7
    found = failure_statistics(score, correct)
    assert found["auroc"] == pytest.approx(roc_auc_score(correct, score), rel=1e-12)
    assert found["ap_correct"] == pytest.approx(average_precision_score(correct, score), rel=1e-12)
    assert found["ap_wrong"] == pytest.approx(average_precision_score(~correct, -score), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda row: len(set(row)) == 2), st.randoms())
def test_aurc_and_those_of_other_packages_come_from_the_same_risks(correct, random):
    """Without ties they differ by how they join the risks r_1, ..., r_n alone, in a way that can be written down."""
    score = random.sample(range(100), len(correct))
    aurc = failure_statistics(np.array(score, dtype=float), np.array(correct))["aurc"]
    risks, n = reference.selective_risks(score, correct), len(correct)
    assert aurc == pytest.approx(sum(risks) / n, rel=1e-12)
    np.testing.assert_allclose(risk_coverage(np.array(score, dtype=float), np.array(correct))[1], risks, rtol=1e-12)
    of_torch_uncertainty = (n * aurc - (risks[0] + risks[-1]) / 2) / (n - 1)
    assert of_torch_uncertainty == pytest.approx(reference.aurc_of_torch_uncertainty(score, correct), abs=1e-12)
    of_fd_shifts = 1000 * (aurc + (risks[0] - risks[-1]) / (2 * n))
    assert of_fd_shifts == pytest.approx(reference.aurc_of_fd_shifts(score, correct), abs=1e-9)


def test_on_many_rows_the_definitions_of_aurc_agree(rng):
    score, correct = rng.normal(size=2000), rng.random(2000) < 0.7
    aurc = failure_statistics(score, correct)["aurc"]
    assert aurc == pytest.approx(reference.aurc_of_torch_uncertainty(score, correct), abs=1 / 2000)
    assert 1000 * aurc == pytest.approx(reference.aurc_of_fd_shifts(score, correct), abs=1000 / 2000)


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


def test_draws_of_a_score_are_averaged_in_every_resample(rng):
    score, draws = rng.normal(size=50), np.round(rng.normal(size=(50, 3)), 1)
    correct = rng.random(50) < 0.7
    statistics, differences = bootstrap({"q": score, "draws": draws}, correct, reference="q", resamples=100, seed=8)
    generator = np.random.default_rng(8)
    drawn = [np.arange(50)] + [generator.integers(0, 50, 50) for _ in range(100)]
    for name in STATISTICS:
        mean = [np.mean([failure_statistics(column[i], correct[i])[name] for column in draws.T]) for i in drawn]
        gap = [failure_statistics(score[i], correct[i])[name] - m for i, m in zip(drawn, mean, strict=True)]
        for interval, values in ((statistics["draws"][name], mean), (differences["draws"][name], gap)):
            expected = (values[0], *np.quantile(values[1:], [0.025, 0.975]))
            assert (interval.value, interval.low, interval.high) == pytest.approx(expected)


def test_the_spread_over_draws(rng):
    draws, correct = np.round(rng.normal(size=(80, 5)), 1), rng.random(80) < 0.7
    found = draw_spread(draws, correct)
    for name in STATISTICS:
        values = [failure_statistics(column, correct)[name] for column in draws.T]
        spread = found[name]
        assert (spread.mean, spread.lowest, spread.highest) == pytest.approx(
            (np.mean(values), min(values), max(values))
        )


def test_intervals_depend_neither_on_threads_nor_on_how_resamples_are_grouped(rng, monkeypatch):
    scores = {"s": np.round(rng.normal(size=300), 1), "draws": rng.normal(size=(300, 4))}
    correct = rng.random(300) < 0.7
    expected = bootstrap(scores, correct, reference="s", resamples=70, seed=2, threads=1)
    assert bootstrap(scores, correct, reference="s", resamples=70, seed=2, threads=5) == expected
    monkeypatch.setattr("qscore.evaluate.ranking.DRAWN_ROWS", 3 * 300)
    assert bootstrap(scores, correct, reference="s", resamples=70, seed=2, threads=2) == expected


def test_a_score_has_the_same_interval_whatever_it_is_compared_with(rng):
    a, b, correct = rng.normal(size=200), rng.normal(size=200), rng.random(200) < 0.7
    assert (
        bootstrap({"b": b, "a": a}, correct, resamples=40)[0]["a"] == bootstrap({"a": a}, correct, resamples=40)[0]["a"]
    )


def test_resamples_without_both_outcomes_do_not_count(rng):
    correct = np.arange(12) > 0  # a third of the resamples hold no wrong row
    score = rng.normal(size=12)
    interval = bootstrap({"s": score}, correct, resamples=300, seed=1)[0]["s"]["auroc"]
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, 12, 12) for _ in range(300)]
    kept = [failure_statistics(score[i], correct[i])["auroc"] for i in drawn if len(set(correct[i].tolist())) == 2]
    assert 150 < len(kept) < 250
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(kept, [0.025, 0.975])))


def test_with_one_outcome_all_is_undefined(rng):
    statistics, differences = bootstrap(
        {"a": rng.normal(size=20), "b": rng.normal(size=20)}, np.ones(20, dtype=bool), reference="a", resamples=5
    )
    for interval in [*statistics["a"].values(), *differences["b"].values()]:
        assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_scores_of_any_number_type_are_ranked(rng):
    correct = rng.random(100) < 0.7
    for dtype in (np.uint8, np.int64, np.float32):
        score = rng.integers(0, 9, 100).astype(dtype)
        expected = failure_statistics(score.astype(np.float64), correct)
        assert failure_statistics(score, correct) == expected
        assert bootstrap({"s": score}, correct, resamples=3)[0]["s"]["aurc"].value == expected["aurc"]


def test_differences_are_paired(rng):
    score, correct = rng.normal(size=300), rng.random(300) < 0.7
    statistics, differences = bootstrap({"a": score, "same": 2 * score + 1}, correct, reference="a", resamples=50)
    assert statistics["a"] == statistics["same"] and list(differences) == ["same"]
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


def scanned(H, epsilon):
    """Evidence of Q alone, fast."""
    found = scan(H, epsilon)
    D = discriminative_features(found.counts)
    rows = pa.table({"q_score": found.q_score(D).astype(np.float32), "l2_norm": found.l2_norm.astype(np.float32)})
    return Evidence(rows, H, H, train_is_test=True)


def test_q_and_rivals_on_null_data_keep_chance_inside_the_interval_as_often_as_promised():
    """Outcomes know nothing of the rows; Q has its large tie at 0."""
    names, inside = ("q_score", "l2_norm", "knn_similarity"), np.zeros(3)
    scores = {score.name: score for score in SCORES}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = scanned(rng.gamma(0.3, size=(400, 48)), 2.5)
        values = {name: scores[name].compute(found) for name in names}
        assert 0.1 < (values["q_score"] == 0).mean() < 0.9
        statistics, _ = bootstrap(values, rng.random(400) < 0.7, resamples=500, seed=seed)
        inside += [statistics[name]["auroc"].contains(0.5) for name in names]
    assert (inside / 200 >= 0.92).all() and (inside / 200 <= 0.98).all()


@pytest.mark.parametrize("outcome", [True, False])
def test_one_outcome_only_is_undefined(outcome):
    found = failure_statistics(np.arange(4.0), np.full(4, outcome))
    assert all(np.isnan(value) for value in found.values())


@pytest.mark.parametrize(
    ("score", "correct", "message"),
    [
        (np.zeros(3), np.ones(4, dtype=bool), r"one value per row, got shapes \(3,\), \(4,\)"),
        (np.zeros((2, 3)), np.ones(2, dtype=bool), r"one value per row, got shapes \(2, 3\), \(2,\)"),
        (np.zeros(0), np.ones(0, dtype=bool), r"one value per row, got shapes \(0,\), \(0,\)"),
        (np.array([1.0, np.nan]), np.array([True, False]), "score: 1 of 2 values are not finite"),
        (np.zeros(2), np.array([0, 1]), "correct: expected booleans, got int64"),
    ],
)
def test_bad_input_is_refused(score, correct, message):
    with pytest.raises(QScoreError, match=message):
        failure_statistics(score, correct)
    with pytest.raises(QScoreError, match=message):
        risk_coverage(score, correct)


@pytest.mark.parametrize(
    ("score", "options", "message"),
    [
        (np.zeros((3, 2)), {}, r"s and correct: expected one value per row, got shapes \(3, 2\), \(4,\)"),
        (np.zeros((4, 0)), {}, r"s and correct: expected one value per row, got shapes \(4, 0\), \(4,\)"),
        (np.full((4, 2), np.inf), {}, "s: 8 of 8 values are not finite"),
        (np.zeros(4), {"resamples": 0}, "resamples: expected at least 1, got 0"),
        (np.zeros(4), {"reference": "q"}, "reference: expected one of s, got 'q'"),
    ],
)
def test_bootstraps_that_cannot_be_are_refused(score, options, message):
    with pytest.raises(QScoreError, match=message):
        bootstrap({"s": score}, np.array([True, True, False, False]), **options)


def test_nothing_to_bootstrap():
    assert bootstrap({}, np.array([True, False])) == ({}, {})
