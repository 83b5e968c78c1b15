import pickle

import numpy as np
import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_images, subset
from qscore.images.sources import ImageRecord, Joined, fingerprint_lines


class Listed:
    """A source held in memory: image i is a square of side i + 1."""

    def __init__(self, ids, labels=None, class_names=None):
        self.name = "+".join(ids)
        self.ids, self.labels, self.class_names = ids, labels, class_names
        self.fingerprint = fingerprint_lines(ids)

    def __len__(self):
        return len(self.ids)

    def record(self, index):
        return ImageRecord(self.ids[index], f"p/{self.ids[index]}", self.labels and self.labels[index])

    def image(self, index):
        return Image.new("RGB", (index + 1, index + 1))


def test_subset_keeps_order_ids_paths_and_labels():
    digits = open_images("digits")
    part = subset(digits, np.array([30, 2, 11]))
    assert [part.record(i) for i in range(len(part))] == [digits.record(i) for i in (30, 2, 11)]
    assert part.labels == [digits.labels[i] for i in (30, 2, 11)]
    np.testing.assert_array_equal(np.asarray(part.image(1)), np.asarray(digits.image(2)))
    assert part.name == "digits" and part.class_names is None


def test_subset_of_a_subset():
    assert subset(subset(open_images("digits"), [5, 6, 7]), [2, 0]).record(0).id == "digits-0007"


def test_subset_without_labels():
    part = subset(Listed(["a", "b"]), [1])
    assert part.labels is None and part.record(0).label is None


def test_subset_fingerprint_follows_positions_and_source():
    digits = open_images("digits")
    prints = [
        subset(digits, [1, 2]).fingerprint,
        subset(digits, [2, 1]).fingerprint,
        subset(Listed(["a", "b", "c"]), [1, 2]).fingerprint,
        digits.fingerprint,
    ]
    assert len(set(prints)) == 4
    assert prints[0] == subset(open_images("digits"), range(1, 3)).fingerprint


def test_subset_can_be_sent_to_a_worker():
    part = pickle.loads(pickle.dumps(subset(open_images("digits"), [4])))
    assert part.record(0).id == "digits-0004"


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "expected a list of integers with at least one entry, got \\[\\]"),
        ([0.5], "expected a list of integers"),
        ([True, False], "expected a list of integers"),
        ([[0], [1]], "expected a list of integers"),
        ([-1], "expected positions from 0 to 2 in a\\+b\\+c, got -1 to -1"),
        ([0, 3], "expected positions from 0 to 2 in a\\+b\\+c, got 0 to 3"),
        ([0, 2, 0], "expected each position once, got 0 more than once"),
    ],
)
def test_subset_refuses(indices, message):
    with pytest.raises(QScoreError, match=message):
        subset(Listed(["a", "b", "c"]), indices)


def test_joined_runs_through_its_parts():
    joined = Joined("ab, c", [Listed(["a", "b"], ["x", "y"], ["x", "y"]), Listed(["c"], ["z"], ["z"])])
    assert len(joined) == 3 and joined.name == "ab, c"
    assert [joined.record(i).id for i in range(3)] == ["a", "b", "c"]
    assert [joined.image(i).width for i in range(3)] == [1, 2, 1]
    assert joined.labels == ["x", "y", "z"] and joined.class_names == ["x", "y", "z"]


def test_joined_fills_missing_labels():
    joined = Joined("j", [Listed(["a"]), Listed(["b"], [3])])
    assert joined.labels == [None, 3] and joined.class_names is None
    assert Joined("j", [Listed(["a"]), Listed(["b"])]).labels is None


def test_joined_fingerprint_follows_order():
    parts = [Listed(["a"]), Listed(["b"])]
    assert Joined("j", parts).fingerprint != Joined("j", parts[::-1]).fingerprint


def test_joined_refuses_an_id_that_comes_twice():
    with pytest.raises(QScoreError, match="^j: expected each id once, got 'a' 2 times"):
        Joined("j", [Listed(["a"]), Listed(["b", "a"])])


def test_joined_refuses_labels_of_two_kinds():
    with pytest.raises(QScoreError, match="class names in some parts and numbers in others"):
        Joined("j", [Listed(["a"], ["x"]), Listed(["b"], [3])])


def test_fingerprint_separates_entries():
    assert fingerprint_lines(["ab", "c"]) != fingerprint_lines(["a", "bc"])
