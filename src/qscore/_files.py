"""Files that appear whole or not at all."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qscore._validate import QScoreError

__all__ = ["atomic_path", "check_new_table", "check_output", "sha256", "to_json"]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name when the block ends, and is removed if it fails.

    Raises
    ------
    QScoreError
        If the folder cannot be made or the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise QScoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Refuse an output that exists, unless it may be overwritten.

    Raises
    ------
    QScoreError
        If the path exists and ``overwrite`` is false, or it is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise QScoreError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise QScoreError(f"{path} exists; choose another name, or overwrite it with --overwrite")
    return path


def check_new_table(path: str | Path, inputs: Iterable[str | Path], *, overwrite: bool) -> Path:
    """Refuse a Parquet output that exists, or that would fall on or into one of the inputs, whatever is asked.

    Raises
    ------
    QScoreError
        If so, or if the name does not end in ``.parquet``.
    """
    path = check_output(path, overwrite=overwrite)
    if path.suffix != ".parquet":
        raise QScoreError(f"{path}: expected a name that ends in .parquet")
    for source in inputs:
        if path.resolve() == Path(source).resolve():
            raise QScoreError(f"{path} is an input, and would be overwritten; choose another name")
        if Path(source).resolve() in path.resolve().parents:
            raise QScoreError(f"{path} would be written into the table {source} itself; choose another place")
    return path


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in which NaN and infinity, which JSON has no word for, are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
