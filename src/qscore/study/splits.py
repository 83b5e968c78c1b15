"""Which images are learned from, and which are only looked at."""

from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from qscore._validate import QScoreError
from qscore.images import ImageSource, open_images, subset

__all__ = ["has_labels", "split_by_label", "train_and_test"]

HALF = 0.5  # of the digits, on which the probe errs little: fewer would hold too few mistakes to predict
TEST_SHARE = 0.2


def split_by_label(source: ImageSource, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split images into a training and a test half, stratified by label, each in the source's order.

    Raises
    ------
    QScoreError
        If there are no labels, or too few images of a class.
    """
    if source.labels is None:
        raise QScoreError(f"{source.name}: expected labelled images, found none with a label")
    return _split(source, HALF, seed, "halve", "")


def train_and_test(
    images: str | Path | ImageSource, test_images: str | Path | ImageSource | None, seed: int
) -> tuple[ImageSource, ImageSource]:
    """Open training and test images; without the latter a fifth of the former is held out, by label if they have any.

    Raises
    ------
    QScoreError
        If one cannot be opened, both are the same images, or there are too few to hold some out.
    """
    train = open_images(images)
    if test_images is None:
        return _split(train, TEST_SHARE, seed, "hold out a fifth of", "; give --test-images")
    test = open_images(test_images)
    if test.fingerprint == train.fingerprint:
        raise QScoreError(f"{test.name}: the test images are the training images; give others, or none")
    return train, test


def has_labels(source: ImageSource) -> bool:
    """Return whether every image has a label."""
    return source.labels is not None and all(label is not None for label in source.labels)


def _split(source: ImageSource, share: float, seed: int, what: str, cure: str) -> tuple[ImageSource, ImageSource]:
    labels = source.labels if has_labels(source) else None
    try:
        train, test = train_test_split(np.arange(len(source)), test_size=share, random_state=seed, stratify=labels)
    except ValueError as error:
        by = "" if labels is None else " by label"
        raise QScoreError(f"{source.name}: cannot {what} {len(source)} images{by}: {error}{cure}") from error
    return subset(source, np.sort(train)), subset(source, np.sort(test))
