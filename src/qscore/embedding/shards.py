"""The folder of a table's shards: what is there already, what comes next, and which images were left out."""

import base64
import csv
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path
from qscore._validate import QScoreError
from qscore.tables import open_embeddings, read_record, write_shard

__all__ = ["Shards", "Skipped", "read_skipped", "skipped_path", "views_path"]

log = logging.getLogger(__name__)

NOTES = b"qscore.shard"
SHARD = re.compile(r"part-[0-9]{5,}\.parquet")  # others' tables have parts by other names, and are not ours to replace
PARTS, SUCCESSOR = ".parts-", ".successor"
HEADER = ["id", "path", "reason"]


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and has no row in the table."""

    id: str
    path: str
    reason: str


def views_path(out: str | Path) -> Path:
    """Return the table of augmented views that belongs to a table."""
    return _beside(out, "-views")


def skipped_path(out: str | Path) -> Path:
    """Return the list of the images that were left out of a table."""
    return _beside(out, ".skipped.csv")


def _beside(out: str | Path, ending: str) -> Path:
    out = Path(out)
    if out.name in ("", ".."):  # such as ".", whose name the disk knows
        out = out.resolve()
    return out.parent / f"{out.name}{ending}"


def read_skipped(out: str | Path) -> list[Skipped]:
    """Return the images that were left out of a table, in their order."""
    return [skipped for shard in _list_shards(Path(out)) for skipped in _read_notes(shard)[1]]


@dataclass
class _Held:
    """A shard whose rows are complete; images that cannot be read and follow it directly are noted in it."""

    rows: list[np.ndarray]
    columns: dict[str, pa.Array]
    skipped: list[Skipped]
    stop: int
    """First image that is dealt with neither here nor in an earlier shard."""


@final
@dataclass
class Shards:
    """A table that is written shard by shard.

    A shard without rows is never written, and a shard only once the next has a row: so the shards, and what each
    notes of the images left out, are the same however often the run was broken off.
    """

    out: Path
    """The table."""
    folder: Path
    """Where its shards are written: ``out``, or a hidden folder in it while an older table is replaced."""
    describe: Callable[[], dict[str, Any]]
    """Makes the table's record, in which ``n_rows`` stands for the rows if every image could be read."""
    rows_per_image: int
    n_images: int
    n_shards: int = 0
    start: int = 0
    """First image that no shard deals with."""
    skipped: list[Skipped] = field(default_factory=list)
    """Of the shards written."""
    _held: _Held | None = None
    _before: list[Skipped] = field(default_factory=list)

    def flush(self) -> None:
        """Write the shard that is held back, if there is one."""
        if self._held is None:
            return
        self.skipped += self._held.skipped
        record = self.describe()
        record["n_rows"] -= len(self.skipped) * self.rows_per_image
        notes = _pack({"stop": self._held.stop, "skipped": [asdict(s) for s in self._held.skipped]})
        path = _shard_path(self.folder, self.n_shards)
        write_shard(path, np.concatenate(self._held.rows), self._held.columns, record, {NOTES: notes})
        self.n_shards, self.start, self._held = self.n_shards + 1, self._held.stop, None

    def hold(self, rows: list[np.ndarray], columns: dict[str, pa.Array], skipped: list[Skipped], stop: int) -> None:
        """Take what became of the images from the last call's ``stop`` to this one's."""
        if rows:
            self.flush()
            self._held = _Held(rows, columns, self._before + skipped, stop)
            self._before = []
        elif self._held is not None:
            self._held.skipped += skipped
            self._held.stop = stop
        else:
            self._before += skipped

    def finish(self) -> None:
        """Write what is left, and let the table take the place of an older one.

        Raises
        ------
        QScoreError
            If no image could be read.
        """
        self.flush()
        if self.n_shards == 0:
            self._clear_parts()
            first = self._before[0]
            raise QScoreError(
                f"none of {len(self._before):,} images can be read; the first: {first.path}: {first.reason}"
            )
        open_embeddings(self.folder)
        if self.folder != self.out:
            for shard in _list_shards(self.out):
                shard.unlink()
            for shard in _list_shards(self.folder):
                shard.replace(self.out / shard.name)
            shutil.rmtree(self.folder, ignore_errors=True)
        self._clear_parts()

    def parts_path(self) -> Path:
        """Return the folder through which processes hand over parts of this very table."""
        return self.out / f"{PARTS}{self.describe()['fingerprint'][:16]}"

    def is_whole(self) -> bool:
        """Tell whether the table is there, whoever wrote it."""
        try:
            if not _belongs(self.out, self.describe()["fingerprint"]):
                return False
            shards = _list_shards(self.out)
            return bool(shards) and _read_notes(shards[-1])[0] == self.n_images
        except OSError:  # another process is just putting it there
            return False

    def _clear_parts(self) -> None:
        for folder in self.out.glob(f"{PARTS}*"):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # there are shards in it, or it was never made
            self.out.rmdir()

    def write_skipped(self) -> None:
        """Write the list of the images left out beside the table; where there are none, remove an older one."""
        path = skipped_path(self.out)
        if self.skipped:
            with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(HEADER)
                writer.writerows((s.id, s.path, s.reason) for s in self.skipped)
            log.warning("images left out, since they could not be read: %s, see %s", f"{len(self.skipped):,}", path)
        elif path.is_file() and path.read_bytes().startswith(",".join(HEADER).encode()):
            path.unlink()


def open_shards(
    out: Path,
    describe: Callable[[], dict[str, Any]],
    rows_per_image: int,
    n_images: int,
    *,
    overwrite: bool,
    writes: bool = True,
) -> Shards:
    """Find where to write, and the leading shards of this very table that are there already.

    A table to be replaced stays until its successor, written to a hidden folder inside it, is whole.

    Parameters
    ----------
    out : Path
        The table.
    describe : callable
        Makes the table's record.
    rows_per_image, n_images : int
        Rows of an image, and images of the source.
    overwrite : bool
        Whether a table of something else is replaced.
    writes : bool, default=True
        Whether this process will write the table; otherwise it removes nothing of what another is writing.

    Raises
    ------
    QScoreError
        If the folder holds anything else, and ``overwrite`` is false, or cannot be written.
    """
    folder = _working_folder(out, describe, overwrite=overwrite, writes=writes)
    shards = Shards(out, folder, describe, rows_per_image, n_images)
    for path in _list_shards(folder):
        shards.start, skipped = _read_notes(path)
        shards.skipped += skipped
        shards.n_shards += 1
    if writes and (folder != out or shards.start < n_images):
        _check_writable(out)
    return shards


def _check_writable(out: Path) -> None:
    """Refuse a folder that cannot be written before anything is computed for it."""
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not folder.is_dir():
        raise QScoreError(f"cannot write {out}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise QScoreError(f"cannot write {out}: {folder} may not be written to; choose another place")


def _working_folder(out: Path, describe: Callable[[], dict[str, Any]], *, overwrite: bool, writes: bool) -> Path:
    if not out.exists():
        return out
    if not out.is_dir():
        raise QScoreError(f"{out} exists and is no folder; choose another name")
    strangers = sorted(
        path.name for path in out.iterdir() if not path.name.startswith(".") and not SHARD.fullmatch(path.name)
    )
    if strangers:
        raise QScoreError(f"{out} holds other files ({strangers[0]}); choose another folder")
    successor = out / SUCCESSOR
    if writes:
        for leftover in (*out.glob(".part-*.tmp"), *successor.glob(".part-*.tmp")):
            leftover.unlink()
    fingerprint = describe()["fingerprint"]
    if _belongs(out, fingerprint):
        if writes:
            _take_over(successor, out, fingerprint)
        return out
    if not overwrite:
        raise QScoreError(
            f"{out} holds a table of other images, another encoder or other settings; "
            "choose another folder, or replace it with --overwrite"
        )
    if not _belongs(successor, fingerprint):
        if not writes:
            return out / ".none"
        shutil.rmtree(successor, ignore_errors=True)
    return successor


def _take_over(successor: Path, out: Path, fingerprint: str) -> None:
    """Move what is left of a successor into its place, if a run was killed while it did so."""
    k = len(_list_shards(out))
    while _fingerprint(_shard_path(successor, k)) == fingerprint:
        _shard_path(successor, k).replace(_shard_path(out, k))
        k += 1
    if not _list_shards(successor):
        shutil.rmtree(successor, ignore_errors=True)


def _shard_path(out: Path, k: int) -> Path:
    return out / f"part-{k:05d}.parquet"


def _list_shards(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("part-*.parquet") if SHARD.fullmatch(path.name))
    return sorted(found, key=lambda path: (len(path.name), path.name))  # number 100,000 has a digit more


def _belongs(folder: Path, fingerprint: str) -> bool:
    """Tell whether the shards of a folder are the first of this very table."""
    shards = _list_shards(folder)
    named = shards == [_shard_path(folder, k) for k in range(len(shards))]
    return named and all(_fingerprint(path) == fingerprint for path in shards)


def _fingerprint(path: Path) -> str | None:
    try:
        schema = pq.read_schema(path)
        return read_record(schema).get("fingerprint") if NOTES in (schema.metadata or {}) else None
    except (OSError, pa.ArrowException, QScoreError):
        return None


def _read_notes(path: Path) -> tuple[int, list[Skipped]]:
    """Return how far a shard deals with the images, and which it left out."""
    notes = _unpack(pq.read_schema(path).metadata[NOTES])
    return notes["stop"], [Skipped(**entry) for entry in notes["skipped"]]


def _pack(notes: dict[str, Any]) -> bytes:
    # Readers refuse metadata of 100 MB: what would otherwise be 300,000 images in a row that cannot be read.
    return base64.b64encode(zlib.compress(json.dumps(notes).encode()))


def _unpack(packed: bytes) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return notes
