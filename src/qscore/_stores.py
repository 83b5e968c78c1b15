"""Where files lie: the local disk, or an object store through pyarrow's file systems (fsspec where it knows more)."""

import importlib.util
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from qscore._validate import QScoreError, one_line

__all__ = ["Location", "StoreError", "locate"]

RETRIES = 3
FORGET_BYTES = 128 * 2**20


class StoreError(QScoreError):
    """A file or store that could not be read now, and may be readable later."""


@dataclass(frozen=True)
class Location:
    """A file or folder of a file system."""

    filesystem: Any
    path: str
    """As the file system writes it."""
    name: str
    """As the user wrote it."""

    @property
    def suffix(self) -> str:
        """The file's ending with its dot, in lower case."""
        return Path(self.path).suffix.lower()

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).stem

    @property
    def local(self) -> Path | None:
        """The path on the local disk, or None where the file lies elsewhere."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def open(self) -> Any:
        """Open for random access; local files are mapped into memory.

        Raises
        ------
        QScoreError
            If it cannot be opened; a store that does not answer is asked three times.
        """
        if self.local is not None:
            return pa.memory_map(self.path)
        return retried(lambda: self.filesystem.open_input_file(self.path), self.name)

    @contextmanager
    def reading(self) -> Iterator[tuple[Any, Callable[[int], None]]]:
        """Give a file to read from beginning to end, and a function to call with the bytes read since the last call.

        Pages of a mapped file stay resident until somebody else wants the memory; that function lets go of them.
        """
        if self.local is None:
            with self.open() as file:
                yield file, lambda _: None
            return
        with self.local.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        read = 0

        def forget(size: int) -> None:
            nonlocal read
            read += size
            if read >= FORGET_BYTES and hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)
                read = 0

        yield pa.BufferReader(pa.py_buffer(mapped)), forget

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change, in nanoseconds: what tells that a file is still the same."""
        info = retried(lambda: self.filesystem.get_file_info(self.path), self.name)
        return info.size or 0, info.mtime_ns or 0

    def children(self) -> list["Location"]:
        """List a folder by name, without hidden files; empty where this is no folder."""
        selector = fs.FileSelector(self.path)
        found = retried(lambda: self.filesystem.get_file_info(selector), self.name)
        if self.local is not None:  # which leaves out links to nothing without a word
            dangling = [path for path in self.local.iterdir() if path.is_symlink() and not path.exists()]
            if dangling:
                raise StoreError(f"{min(dangling)}: a link to a file that is not there")
        return [
            Location(self.filesystem, info.path, f"{self.name.rstrip('/')}/{info.base_name}")
            for info in sorted(found, key=lambda info: str(info.path))
            if not info.base_name.startswith((".", "_"))
        ]

    @property
    def kind(self) -> Any:
        """Whether this is a file, a folder, or nothing (a `pyarrow.fs.FileType`)."""
        return retried(lambda: self.filesystem.get_file_info(self.path), self.name).type


def locate(path: str | Path) -> Location:
    """Find the file system of a path: local, or a URI such as ``s3://bucket/table``.

    Raises
    ------
    QScoreError
        If the URI is of no known kind.
    """
    text = str(path)
    if "://" not in text:
        return Location(fs.LocalFileSystem(), text, text)
    try:
        filesystem, inner = fs.FileSystem.from_uri(text)
    except (pa.ArrowException, OSError) as error:
        scheme = text.partition("://")[0]
        if importlib.util.find_spec("fsspec") is None:
            raise QScoreError(f"{text}: {one_line(error)}; pip install fsspec may know {scheme}://") from error
        return _through_fsspec(text, scheme, error)
    return Location(filesystem, inner, text)


def _through_fsspec(text: str, scheme: str, cause: Exception) -> Location:
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise QScoreError(f"{text}: no file system for {scheme}:// ({one_line(error)})") from cause
    return Location(fs.PyFileSystem(fs.FSSpecHandler(filesystem)), inner, text)


def pause(attempt: int) -> None:
    """Give a store that failed a moment: half a second after the first attempt, twice that after the next."""
    time.sleep(0.5 * 2**attempt)


def retried(action: Any, name: str) -> Any:
    """Do what may fail for a moment, up to three times.

    Raises
    ------
    QScoreError
        With the last failure.
    """
    for attempt in range(RETRIES):
        try:
            return action()
        except FileNotFoundError as error:
            raise QScoreError(f"{name}: no such file or folder") from error
        except OSError as error:
            if attempt == RETRIES - 1:
                raise StoreError(f"cannot read {name}: {one_line(error)}") from error
            pause(attempt)
    return None
