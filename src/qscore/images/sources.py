"""What every source of images offers, and the two ways to make one out of others."""

import bisect
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
from PIL import Image

from qscore._validate import QScoreError

__all__ = ["ImageRecord", "ImageSource", "Joined", "Label", "check_unique", "fingerprint_lines", "subset"]

Label = str | int | None


@dataclass(frozen=True)
class ImageRecord:
    """All that is known of an image without decoding it."""

    id: str
    """Unique within its source."""
    path: str
    """A locator that `open_image` can reopen: a file, ``a.npz#17``, ``b.tar#member.jpg``, ``digits#17``."""
    label: Label
    """Class name, or number where classes have no names, or None."""


class ImageSource(Protocol):
    """A sequence of images; small to pickle, so that worker processes can take a copy."""

    @property
    def name(self) -> str:
        """What the user typed."""

    @property
    def labels(self) -> Sequence[Label] | None:
        """One label per image, or None where no image has one."""

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, or None where labels are numbers or absent."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 that changes when the images do; found without decoding any."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB.

        Raises
        ------
        QScoreError
            If this image cannot be read.
        StoreError
            If the disk or the store fails, so that no other image could be read either.
        """


def subset(source: ImageSource, indices: Iterable[int]) -> ImageSource:
    """Return the images at some positions of a source, in the order given, with ids, paths and labels kept.

    Parameters
    ----------
    source : ImageSource
        Where the images are.
    indices : iterable of int
        Positions in ``range(len(source))``.

    Raises
    ------
    QScoreError
        If there is no position, one is no integer, is out of range, or comes twice.

    Examples
    --------
    >>> from qscore.images import open_images, subset
    >>> subset(open_images("digits"), [3, 1]).record(0).id
    'digits-0003'
    """
    chosen = np.asarray(list(indices))
    if chosen.ndim != 1 or len(chosen) == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise QScoreError(f"indices: expected a list of integers with at least one entry, got {_brief(indices)}")
    if chosen.min() < 0 or chosen.max() >= len(source):
        raise QScoreError(
            f"indices: expected positions from 0 to {len(source) - 1} in {source.name}, "
            f"got {chosen.min()} to {chosen.max()}"
        )
    if len(np.unique(chosen)) < len(chosen):
        repeated = Counter(chosen.tolist()).most_common(1)[0][0]
        raise QScoreError(f"indices: expected each position once, got {repeated} more than once")
    return Subset(source, chosen.tolist())


@final
class Subset:
    """Some images of a source; made by `subset`, which checks the positions."""

    def __init__(self, source: ImageSource, indices: list[int]) -> None:
        self._source = source
        self._indices = indices
        self.name = source.name
        self.class_names = source.class_names
        self.labels = None if source.labels is None else [source.labels[i] for i in indices]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole source's fingerprint and the positions."""
        return fingerprint_lines([self._source.fingerprint, *map(str, self._indices)])

    def __len__(self) -> int:
        return len(self._indices)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        return self._source.record(self._indices[index])

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        return self._source.image(self._indices[index])


@final
class Joined:
    """Several sources end to end.

    Parameters
    ----------
    name : str
        What the user typed for them together.
    parts : sequence of ImageSource
        In their order.

    Raises
    ------
    QScoreError
        If an id comes twice, or labels are names in one part and numbers in another.
    """

    def __init__(self, name: str, parts: Sequence[ImageSource]) -> None:
        self.name = name
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))
        self.labels = self._join_labels()
        self.class_names = self._join_class_names()
        check_unique((self.record(i).id for i in range(len(self))), self.name)

    def _join_labels(self) -> list[Label] | None:
        if all(part.labels is None for part in self._parts):
            return None
        labels = [label for part in self._parts for label in part.labels or [None] * len(part)]
        if len({type(label) for label in labels if label is not None}) > 1:
            raise QScoreError(
                f"{self.name}: expected labels of one kind, got class names in some parts and numbers in others; "
                "give them one after the other"
            )
        return labels

    def _join_class_names(self) -> list[str] | None:
        names = [name for part in self._parts for name in part.class_names or []]
        return list(dict.fromkeys(names)) or None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parts' fingerprints."""
        return fingerprint_lines(part.fingerprint for part in self._parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        part, i = self._locate(index)
        return part.record(i)

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        part, i = self._locate(index)
        return part.image(i)


def check_unique(ids: Iterable[str], name: str) -> None:
    """Refuse ids that come twice: rows of later tables are matched by id."""
    [(first, count)] = Counter(ids).most_common(1)
    if count > 1:
        raise QScoreError(f"{name}: expected each id once, got {first!r} {count} times; give each image its own id")


def fingerprint_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of a list of strings."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
