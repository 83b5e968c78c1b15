"""The bytes of a file or of a part of it, on the local disk or in an object store."""

import errno
import os
import stat
from functools import lru_cache
from pathlib import Path

from qscore._stores import Location, StoreError, locate, retried
from qscore._validate import QScoreError

__all__ = ["find_file", "is_uri", "read_bytes", "stamp"]

LARGEST_FILE = 2**30  # bytes; nothing that Pillow agrees to decode is larger

# Failures of the disk, the network or this process: the next image would fail as well.
BEYOND_THE_FILE = frozenset(
    [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN]
)


def is_uri(name: str) -> bool:
    """Tell whether a name is a URI such as ``s3://bucket/a.jpg``."""
    return "://" in name


def read_bytes(name: str, offset: int = 0, size: int | None = None) -> bytes:
    """Read a file, or ``size`` bytes of it from ``offset`` on.

    Parameters
    ----------
    name : str
        A local file or a URI.
    offset : int, default=0
        First byte, >= 0.
    size : int, optional
        Number of bytes, >= 0; by default all that follow.

    Raises
    ------
    QScoreError
        If there is no such file, it may not be read, is no regular file, or is too large for an image.
    StoreError
        If the disk or the store fails, whatever the file.
    """
    if is_uri(name):
        return _read_remote(find_file(name), offset, size)
    try:
        status = Path(name).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
            raise IsADirectoryError(errno.EISDIR, "Is a directory" if stat.S_ISDIR(status.st_mode) else "Not a file")
        _check_size(name, status.st_size - offset if size is None else size)
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123 (a Path for each of a million images is no gain)
            file.seek(offset)
            return file.read() if size is None else file.read(size)
    except OSError as error:
        kind = StoreError if error.errno in BEYOND_THE_FILE else QScoreError
        raise kind(f"{name}: cannot read the image: {error.strerror or error}") from error
    except ValueError as error:  # a name with a null character
        raise QScoreError(f"{name!r}: cannot read the image: {error}") from error


def _read_remote(location: Location, offset: int, size: int | None) -> bytes:
    def read() -> bytes:
        with location.filesystem.open_input_file(location.path) as file:
            length = file.size() - offset if size is None else size
            _check_size(location.name, length)
            data: bytes = file.read_at(length, offset)
            return data

    content: bytes = retried(read, location.name)
    return content


def _check_size(name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise QScoreError(f"{name}: cannot read the image: {size:,} bytes are too many for one; leave it out")


def find_file(name: str) -> Location:
    """Find the file system of a name, which is opened once a process: a store may be slow to greet."""
    parts = name.split("/", 3)
    if not is_uri(name) or len(parts) < 4 or not parts[2]:
        return locate(name)
    root = _root("/".join(parts[:3]), os.getpid())
    return Location(root.filesystem, f"{root.path.rstrip('/')}/{parts[3]}", name)


@lru_cache(maxsize=32)
def _root(uri: str, _process: int) -> Location:
    return locate(uri)


def stamp(name: str) -> tuple[int, int]:
    """Return size in bytes and time of the last change in nanoseconds; zeros where the file cannot be seen."""
    try:
        if is_uri(name):
            return find_file(name).stamp
        status = Path(name).stat()
    except (OSError, ValueError):  # a link to nowhere: reading the image will say so
        return 0, 0
    return status.st_size, status.st_mtime_ns
