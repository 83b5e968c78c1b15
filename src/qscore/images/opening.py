"""One table of the kinds of image source, and the two functions that consult it."""

import glob
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from qscore._validate import QScoreError, nearest
from qscore.images.archive import ArchiveSource
from qscore.images.decode import read_image
from qscore.images.digits import DigitsSource
from qscore.images.files import is_uri, stamp
from qscore.images.folder import FolderSource
from qscore.images.lists import ListSource
from qscore.images.published import HubSource, TorchvisionSource
from qscore.images.shapes import ShapesSource
from qscore.images.sources import ImageSource, Joined
from qscore.images.tars import TarSource

__all__ = ["open_image", "open_images"]


class Kind(NamedTuple):
    """A kind of image source."""

    description: str
    accepts: Callable[[str], bool]
    open: Callable[[str], ImageSource]


def _ending(*endings: str) -> Callable[[str], bool]:
    return lambda name: name.lower().endswith(endings)


def _beginning(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


KINDS = (
    Kind("'digits'", lambda name: name == "digits", lambda _: DigitsSource()),
    Kind("'shapes' or shapes:n=500,spurious=0", lambda name: name.partition(":")[0] == "shapes", ShapesSource),
    Kind("torchvision:NAME/SPLIT", _beginning("torchvision:"), TorchvisionSource),
    Kind("hf:NAME:SPLIT", _beginning("hf:"), HubSource),
    Kind("a folder of images", lambda name: bool(name) and Path(name).is_dir(), FolderSource),
    Kind("an .npz archive", _ending(".npz"), ArchiveSource),
    Kind("a WebDataset tar (patterns such as 'train-{000..099}.tar' name several)", _ending(".tar"), TarSource),
    Kind("a .csv or .parquet list", _ending(".csv", ".parquet"), lambda name: ListSource(name, open_image)),
)
NAMES = ("digits", "shapes")
MEMBER = re.compile(r"\.tar(?=#)", re.IGNORECASE)
# A numeric range, alternatives, or a stretch of text: whatever is no brace expression stands for itself.
BRACES = re.compile(r"(\{(?:(\d{1,12})\.\.(\d{1,12})|([^{},]*(?:,[^{},]*)+))\}|[^{]+|\{)")
MOST_NAMES = 100_000


def open_images(source: str | Path | ImageSource | Sequence[str | Path]) -> ImageSource:
    """Open a source of images by name.

    Parameters
    ----------
    source : str, Path, ImageSource or list of str or Path
        A folder of images; a ``.csv`` or ``.parquet`` list with a column ``path``, and ``id`` and ``label`` if there;
        an ``.npz`` archive; a WebDataset tar; a pattern such as ``"train-*.npz"`` or ``"train-{000..099}.tar"``;
        ``"torchvision:CIFAR10/test"``; ``"hf:ylecun/mnist:test"``; ``"digits"``; or ``"shapes"``, with settings such
        as ``"shapes:n=500,spurious=0"``. Lists and tars may lie in an object store. A Python list is read end to end;
        an open source is returned as it is.

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
        An image file, local or a URI, or a source and what is meant of it, such as ``"a.npz#17"``, ``"digits#17"``,
        ``"torchvision:CIFAR10/test#17"`` or ``"b.tar#member.jpg"``.

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
    name = _find_tar(locator)
    if name is not None:
        tar, member = _reopen(name, stamp(name)), locator[len(name) + 1 :]
        if not isinstance(tar, TarSource) or member not in tar.positions:
            raise QScoreError(f"{locator}: no such image in {name}")
        return tar.image(tar.positions[member])
    container, _, position = locator.rpartition("#")
    if not (position.isdecimal() and any(kind.accepts(container) for kind in KINDS)):
        return read_image(locator)
    source = _reopen(container, stamp(container))
    if int(position) >= len(source):
        raise QScoreError(f"{locator}: expected a position below {len(source)}")
    return source.image(int(position))


def _find_tar(locator: str) -> str | None:
    """Return the longest beginning of a locator that is a tar: names of files and of members may hold the sign too."""
    names = [locator[: match.end()] for match in MEMBER.finditer(locator)]
    if not names or (not is_uri(locator) and _is_file(locator)):
        return None
    if is_uri(locator):
        found = (name for name in reversed(names) if len(names) == 1 or stamp(name) != (0, 0))
    else:
        found = (name for name in reversed(names) if _is_file(name))
    return next(found, names[0])


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a file, since a member's name is part of it
        return False


@lru_cache(maxsize=8)
def _reopen(container: str, _stamp: tuple[int, int]) -> ImageSource:
    """Keep containers open from one image to the next, unless the file has changed."""
    return _open_one(container)


def _expand(name: str) -> list[str]:
    if is_uri(name):
        return expand_braces(name)
    if name.startswith(("torchvision:", "hf:", "shapes:")) or _exists(name):
        return [name]
    return [match for pattern in expand_braces(name) for match in _glob(pattern)]


def _glob(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or _exists(pattern):
        return [pattern]
    names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not names:
        raise QScoreError(f"{pattern}: no file or folder matches this pattern")
    return names


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name too long: opening it will say so
        return False


def expand_braces(pattern: str) -> list[str]:
    """Write out numeric ranges and alternatives in braces, as a shell does.

    Raises
    ------
    QScoreError
        If that gives more than 100,000 names.

    Examples
    --------
    >>> expand_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> expand_braces("{a,b}.npz")
    ['a.npz', 'b.npz']
    """
    names = [""]
    for literal, low, high, options in BRACES.findall(pattern):
        choices = [literal]
        if low:
            width = max(len(low), len(high)) if "0" in (low[0], high[0]) else 0
            count = abs(int(high) - int(low)) + 1
            step = 1 if int(high) >= int(low) else -1
            choices = [f"{int(low) + step * i:0{width}d}" for i in range(min(count, MOST_NAMES + 1))]
        elif options:
            choices = options.split(",")
        if len(names) * len(choices) > MOST_NAMES:
            raise QScoreError(f"{pattern}: expected at most {MOST_NAMES:,} names, got more")
        names = [name + choice for name in names for choice in choices]
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
    if found == "a file" and name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")):
        found = "a compressed tar, which cannot be read at random: decompress it first"
    raise QScoreError(f"images {name!r}: expected one of {forms}; got {found}{nearest(name, NAMES)}")
