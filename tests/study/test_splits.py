import pytest

from qscore import QScoreError
from qscore.images import open_images, subset
from qscore.study import split_by_label
from qscore.study.splits import has_labels, train_and_test


def test_a_fifth_is_held_out_by_label():
    digits = subset(open_images("digits"), range(100))
    train, test = train_and_test(digits, None, 0)
    assert (len(train), len(test)) == (80, 20)
    for label in range(10):
        n = digits.labels.count(label)
        assert abs(test.labels.count(label) - n / 5) < 1
    ids = [[part.record(i).id for i in range(len(part))] for part in (train, test)]
    assert not set(ids[0]) & set(ids[1]) and ids[0] == sorted(ids[0])


def test_without_labels_it_is_held_out_at_random(unlabelled):
    train, test = train_and_test(unlabelled, None, 0)
    assert (len(train), len(test)) == (48, 12) and not has_labels(train)


def test_the_same_images_twice_are_refused():
    with pytest.raises(QScoreError, match="digits: the test images are the training images; give others, or none"):
        train_and_test("digits", "digits", 0)


def test_too_few_images_of_a_class_are_refused():
    with pytest.raises(QScoreError, match="cannot hold out a fifth of 11 images by label: .*; give --test-images"):
        train_and_test(subset(open_images("digits"), range(11)), None, 0)
    with pytest.raises(QScoreError, match="cannot halve 11 images by label"):
        split_by_label(subset(open_images("digits"), range(11)), 0)
