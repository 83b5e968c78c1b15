"""One table of the kinds of image source, and the two functions that consult it."""

import glob
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from qscore._validate import QScoreError, nearest
from qscore.images.archive import ArchiveSource
from qscore.images.decode import read_image
from qscore.images.digits import DigitsSource
from qscore.images.folder import FolderSource
from qscore.images.sources import ImageSource, Joined

__all__ = ["open_image", "open_images"]


class Kind(NamedTuple):
    """A kind of image source."""

    description: str
    accepts: Callable[[str], bool]
    open: Callable[[str], ImageSource]


KINDS = (
    Kind("'digits'", lambda name: name == "digits", lambda _: DigitsSource()),
    Kind("an .npz archive (or a pattern such as 'train-*.npz')", lambda name: name.endswith(".npz"), ArchiveSource),
    Kind("a folder of images", lambda name: bool(name) and Path(name).is_dir(), FolderSource),
)
NAMES = ("digits",)


def open_images(source: str | Path | ImageSource | Sequence[str | Path]) -> ImageSource:
    """Open a source of images by name.

    Parameters
    ----------
    source : str, Path, ImageSource or list of str or Path
        A folder of images, an ``.npz`` archive, a pattern such as ``"train-*.npz"``, or ``"digits"``; a list is
        read end to end; an open source is returned as it is.

    Raises
    ------
    QScoreError
        If the name is of no known kind, nothing matches the pattern, or what it names cannot be read.

    Examples
    --------
    >>> from qscore.images import open_images
    >>> digits = open_images("digits")
    >>> len(digits), digits.image(0).size, digits.record(0).label
    (1797, (8, 8), 0)
    """
    if isinstance(source, str | Path):
        typed = [str(source)]
    elif isinstance(source, Sequence):
        typed = [str(entry) for entry in source]
    else:
        return source
    if not typed:
        raise QScoreError("images: expected at least one source, got an empty list")
    parts = [_open_one(name) for entry in typed for name in _expand(entry)]
    return parts[0] if len(parts) == 1 else Joined(", ".join(typed), parts)


def open_image(locator: str) -> Image.Image:
    """Open one image, upright and in RGB, by the ``path`` of its record.

    Parameters
    ----------
    locator : str
        An image file, or a source and a position such as ``"a.npz#17"`` or ``"digits#17"``.

    Raises
    ------
    QScoreError
        If there is no such image, or it cannot be decoded.

    Examples
    --------
    >>> from qscore.images import open_image
    >>> open_image("digits#17").size
    (8, 8)
    """
    container, _, position = locator.rpartition("#")
    if not (position.isdecimal() and any(kind.accepts(container) for kind in KINDS)):
        return read_image(Path(locator))
    path = Path(container)
    source = _reopen(container, path.stat().st_mtime_ns if path.is_file() else 0)
    if int(position) >= len(source):
        raise QScoreError(f"{locator}: expected a position below {len(source)}")
    return source.image(int(position))


@lru_cache(maxsize=8)
def _reopen(container: str, _modified: int) -> ImageSource:
    """Keep containers open from one image to the next, unless the file has changed."""
    return _open_one(container)


def _expand(name: str) -> list[str]:
    if not glob.has_magic(name) or Path(name).exists():
        return [name]
    names = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not names:
        raise QScoreError(f"{name}: no file or folder matches this pattern")
    return names


def _open_one(name: str) -> ImageSource:
    try:
        for kind in KINDS:
            if kind.accepts(name):
                return kind.open(name)
    except OSError as error:
        raise QScoreError(f"images {name!r}: {error.strerror}") from error
    forms = ", ".join(kind.description for kind in KINDS)
    found = "a file" if Path(name).is_file() else "no such file or folder"
    raise QScoreError(f"images {name!r}: expected one of {forms}; got {found}{nearest(name, NAMES)}")
