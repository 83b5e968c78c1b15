import numpy as np
import pytest

from qscore import QScoreError
from qscore.evaluate import failure_statistics
from qscore.evaluate.classes import class_statistics
from qscore.evaluate.ranking import STATISTICS


def several(rng, n=400):
    """Four classes: one of middling rows, one with a single wrong row, one all correct, one all wrong."""
    labels = rng.choice(4, n)
    correct = rng.random(n) < 0.6
    correct[labels == 1] = np.arange((labels == 1).sum()) > 0
    correct[labels >= 2] = labels[labels >= 2] == 2
    values = {"s": np.round(rng.normal(size=n), 1), "draws": rng.normal(size=(n, 3))}
    return values, labels, correct


def test_each_class_has_the_statistics_of_its_rows(rng):
    values, labels, correct = several(rng)
    found = class_statistics(values, labels, correct, resamples=10)
    assert [row.label for row in found.classes] == [0, 1, 2, 3]
    for row in found.classes:
        own = labels == row.label
        assert (row.n, row.n_wrong) == (own.sum(), (~correct[own]).sum())
        assert (row.statistics is None) == (row.label >= 2)
        for statistic in STATISTICS if row.statistics else ():
            alone = failure_statistics(values["s"][own], correct[own])[statistic]
            draws = [failure_statistics(column[own], correct[own])[statistic] for column in values["draws"].T]
            assert row.statistics["s"][statistic].value == pytest.approx(alone)
            assert row.statistics["draws"][statistic].value == pytest.approx(np.mean(draws))
    assert found.n_measured == 2
    for name in values:
        for statistic in STATISTICS:
            mean = np.mean([row.statistics[name][statistic].value for row in found.classes[:2]])
            assert found.mean[name][statistic].value == pytest.approx(mean)


def test_rows_are_resampled_within_their_class(rng):
    """Resamples without both outcomes, frequent where one row is wrong, count neither there nor in the mean."""
    values, labels, correct = several(rng, n=80)
    score = values["s"]
    found = class_statistics({"s": score}, labels, correct, resamples=60, seed=4)
    drawn = np.full((2, 60), np.nan)
    for c in range(2):
        rows, generator = np.flatnonzero(labels == c), np.random.default_rng([4, c])
        for b in range(60):
            i = rows[generator.integers(0, len(rows), len(rows))]
            drawn[c, b] = failure_statistics(score[i], correct[i])["auroc"]
    assert np.isnan(drawn[1]).any() and not np.isnan(drawn[0]).any()
    for interval, expected in (
        (found.classes[0].statistics["s"]["auroc"], drawn[0]),
        (found.classes[1].statistics["s"]["auroc"], drawn[1]),
        (found.mean["s"]["auroc"], np.nanmean(drawn, axis=0)),
    ):
        assert (interval.low, interval.high) == pytest.approx(tuple(np.nanquantile(expected, [0.025, 0.975])))


def test_a_score_that_only_knows_hard_classes_is_a_coin_within_them(rng):
    labels = np.arange(2000) % 20
    correct = rng.random(2000) < 0.3 + 0.03 * labels
    found = class_statistics({"s": labels + 0.0}, labels, correct, resamples=50)
    assert failure_statistics(labels + 0.0, correct)["auroc"] > 0.65
    assert (found.mean["s"]["auroc"].value, found.mean["s"]["auroc"].high) == (0.5, 0.5)


def test_a_thousand_classes(rng):
    labels, correct = np.arange(4000) % 1000, rng.random(4000) < 0.7
    correct[labels == 7] = True
    found = class_statistics({"s": correct + 0.0}, labels, correct, resamples=5)
    both = [0 < correct[labels == c].sum() < 4 for c in range(1000)]
    assert found.n_measured == sum(both) and [row.statistics is not None for row in found.classes] == both
    assert found.mean["s"]["auroc"].value == 1.0 and found.classes[7].n_wrong == 0


def test_results_depend_neither_on_threads_nor_on_other_classes(rng):
    values, labels, correct = several(rng)
    one, many = (class_statistics(values, labels, correct, resamples=20, threads=threads) for threads in (1, 4))
    assert one == many
    first = labels == 0
    alone = class_statistics(
        {name: score[first] for name, score in values.items()}, labels[first], correct[first], resamples=20
    )
    assert alone.classes[0] == one.classes[0] and alone.mean == alone.classes[0].statistics


def test_records_are_tidy(rng):
    values, labels, correct = several(rng)
    names = np.array(["cat", "dog", "eel", "fox"])[labels]
    found = class_statistics(values, names, correct, resamples=10)
    records = found.records()
    assert len(records) == 2 * 2 * 4 and {record["class"] for record in records} == {"cat", "dog"}
    first = found.classes[0]
    assert records[0] == {
        **{"class": "cat", "n": first.n, "n_wrong": first.n_wrong, "score": "s", "statistic": "auroc"},
        **{"value": first.statistics["s"]["auroc"].value},
        **{"low": first.statistics["s"]["auroc"].low, "high": first.statistics["s"]["auroc"].high},
    }


def test_without_a_class_of_both_outcomes_there_is_no_mean():
    labels = np.array([0, 0, 1, 1])
    found = class_statistics({"s": np.arange(4.0)}, labels, labels == 0, resamples=5)
    assert found.mean == {} and found.n_measured == 0 and found.records() == []
    assert [(row.n, row.n_wrong, row.statistics) for row in found.classes] == [(2, 0, None), (2, 2, None)]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.zeros(3), {}, r"labels: expected one for each of 4 rows, got shape \(3,\)"),
        (np.zeros(4), {"resamples": 0}, "resamples: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(labels, options, message):
    with pytest.raises(QScoreError, match=message):
        class_statistics({"s": np.arange(4.0)}, labels, np.array([True, False, True, False]), **options)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(QScoreError, match="s: 1 of 2 values are not finite"):
        class_statistics({"s": np.array([np.inf, 1.0])}, np.zeros(2), np.array([True, False]))
