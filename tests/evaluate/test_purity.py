import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import claims as reference

from qscore.evaluate.effects import resampled_weights
from qscore.evaluate.purity import purity

rows = st.lists(
    st.tuples(st.sets(st.integers(0, 4), max_size=3).map(sorted), st.booleans(), st.integers(0, 1)),
    min_size=1,
    max_size=12,
)
SETS = {"most": [0, 1, 2], "one": [3], "none": []}


def csr(lists):
    indptr = np.cumsum([0, *(len(row) for row in lists)])
    return indptr, np.array([j for row in lists for j in row], dtype=np.int32)


def masks():
    return np.array([[j in chosen for j in range(5)] for chosen in SETS.values()])


@settings(max_examples=100, deadline=None)
@given(rows, st.booleans(), st.integers(0, 2**32 - 1))
def test_excess_equals_the_definition_on_the_rows_and_on_resamples(triples, within, seed):
    if not within:
        triples = [(row, ok, 0) for row, ok, _ in triples]
    lists, correct, classes = (list(column) for column in zip(*triples, strict=True))
    of = np.array(classes) if within else None
    found = purity(*csr(lists), masks(), np.array(correct), of, resamples=3, seed=seed)
    counting = [c for c in set(classes) if len({ok for _, ok, other in triples if other == c}) == 2]
    for b, weights in enumerate(resampled_weights(np.array(classes), 3, seed)):
        repeated = [row for row, weight in zip(triples, weights, strict=True) for _ in range(weight)]
        columns = [list(column) for column in zip(*repeated, strict=True)]
        assert found.base[b] == pytest.approx(np.mean(columns[1]))
        for value, chosen in zip(found.excess[b], SETS.values(), strict=True):
            expected = reference.excess(columns[0], chosen, *columns[1:], counting)
            assert value == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_within_class_a_feature_of_easy_classes_has_no_excess(rng):
    classes = np.repeat([0, 1], 2000)
    correct = rng.random(4000) < np.where(classes == 0, 0.9, 0.4)
    lists = [[c] for c in classes]
    overall = purity(*csr(lists), masks(), correct, resamples=0)
    within = purity(*csr(lists), masks(), correct, classes, resamples=0)
    assert abs(overall.excess[0, 0]) < 1e-9  # half of the rows above the base rate, half below
    np.testing.assert_allclose(within.excess[0, 0], 0.0, atol=1e-12)
    only = purity(*csr(lists), np.eye(5, dtype=bool)[:1], correct, resamples=0)
    assert only.excess[0, 0] == pytest.approx(correct[:2000].mean() - correct.mean())


def test_features_that_are_never_active_do_not_count():
    found = purity(*csr([[0], [0], []]), masks(), np.array([True, False, True]), resamples=0)
    assert found.n_features.tolist() == [1, 0, 0] and np.isnan(found.excess[0, 1:]).all()
    assert found.excess[0, 0] == pytest.approx(0.5 - 2 / 3)


@pytest.mark.parametrize("within", [False, True])
def test_null_features_keep_zero_inside_the_interval_as_often_as_promised(within):
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        classes, correct = rng.integers(0, 3, 300), rng.random(300) < 0.7
        lists = [sorted(set(rng.integers(0, 5, 2).tolist())) for _ in range(300)]
        of = classes if within else None
        found = purity(*csr(lists), masks()[1:2], correct, of, resamples=300, seed=seed).excess[:, 0]
        low, high = np.quantile(found[1:], [0.025, 0.975])
        inside += low <= 0 <= high
    assert 0.92 <= inside / 200 <= 0.98
