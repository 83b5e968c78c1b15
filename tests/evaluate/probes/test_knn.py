import math

import numpy as np
import pytest

from qscore.evaluate.probes import fit_probe, knn
from qscore.evaluate.probes.devices import Placement
from qscore.evaluate.probes.rows import TrainingRows, training_rows


def naive(train, labels, test, k, temperature=0.07):
    """One row after the other, from the formula."""
    predicted, confidence = [], []
    for row in test.astype(float):
        similarities = []
        for other in train.astype(float):
            norms = math.sqrt(math.fsum(row**2)) * math.sqrt(math.fsum(other**2))
            similarities.append(math.fsum(row * other) / norms if norms else 0.0)
        votes = {}
        for j in sorted(range(len(train)), key=lambda j: -similarities[j])[:k]:
            votes[labels[j]] = votes.get(labels[j], 0.0) + math.exp(similarities[j] / temperature)
        winner = max(votes, key=votes.get)
        predicted.append(winner)
        confidence.append(votes[winner] / math.fsum(votes.values()))
    return predicted, confidence


@pytest.fixture
def rows(rng):
    labels = rng.integers(0, 3, 90)
    H = rng.normal(size=(90, 8)).astype(np.float32) + 1.5 * np.eye(3, 8, dtype=np.float32)[labels]
    return H[:60], np.array(["ant", "bee", "cat"])[labels[:60]], H[60:]


def test_rows_vote_as_in_the_formula(rows):
    train, labels, test = rows
    probe = fit_probe("knn", train, labels)
    predicted, confidence = probe.predict(test)
    expected = naive(train, labels, test, k=20)
    assert probe.describe()["k"] == 20
    assert predicted.tolist() == expected[0]
    np.testing.assert_allclose(confidence, expected[1], rtol=1e-5)


def test_blocks_of_any_size_give_the_same(rows, monkeypatch):
    train, labels, test = rows
    whole = fit_probe("knn", train, labels).predict(test)
    monkeypatch.setattr(knn, "TILE", 7)
    monkeypatch.setattr(knn, "TEST_BYTES", 2000)
    largest = []
    monkeypatch.setattr(
        TrainingRows,
        "take",
        lambda self, places, take=TrainingRows.take: largest.append(len(places)) or take(self, places),
    )
    probe = fit_probe("knn", train, labels)
    largest.clear()
    pieces = probe.predict(test)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_allclose(whole[1], pieces[1], rtol=1e-6)
    assert max(largest) == 7


def test_on_tensors_the_neighbours_are_the_same(rows, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(knn, "TILE", 17)
    train, labels, test = rows
    found = [
        knn.most_similar(test, training_rows(train, labels), 9, Placement(device))
        for device in (None, torch.device("cpu"))
    ]
    for similarity, neighbors in found:
        assert similarity.dtype == np.float32 and similarity.shape == neighbors.shape == (30, 9)
    np.testing.assert_array_equal(*(np.sort(neighbors, axis=1) for _, neighbors in found))
    np.testing.assert_allclose(*(np.sort(similarity, axis=1) for similarity, _ in found), atol=1e-6)


def test_length_does_not_matter(rows, rng):
    train, labels, test = rows
    one = fit_probe("knn", train, labels).predict(test)
    lengths = 2.0 ** rng.integers(-8, 8, size=(90, 1)).astype(np.float32)
    other = fit_probe("knn", train * lengths[:60], labels).predict(test * lengths[60:])
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_an_all_zero_row_resembles_all_alike(rows):
    train, labels, _ = rows
    predicted, confidence = fit_probe("knn", train, labels).predict(np.zeros((1, 8), dtype=np.float32))
    assert predicted[0] in {"ant", "bee", "cat"} and 1 / 3 <= confidence[0] <= 1


@pytest.mark.parametrize(
    ("n", "classes", "k"), [(12_500, 10, 200), (1_281_167, 1000, 200), (60, 3, 20), (7, 3, 2), (5, 5, 1)]
)
def test_k_is_capped_by_the_rows_of_an_average_class(n, classes, k):
    assert knn.choose_k(n, classes) == k


def test_a_single_row_of_each_class_suffices():
    probe = fit_probe("knn", np.eye(4), [10, 11, 12, 13])
    predicted, confidence = probe.predict(np.eye(4) + 0.1)
    assert predicted.tolist() == [10, 11, 12, 13] and (confidence == 1).all()
    assert probe.sentences() == [
        "Its 1 nearest training rows vote; its confidence is a share of their votes, not a probability."
    ]
    assert probe.describe()["probability"] is False
