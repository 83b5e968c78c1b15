"""The folder of a run that is under way: what it has done, so that the same command can go on after a kill."""

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qscore._files import atomic_path, sha256, to_json
from qscore._stores import StoreError
from qscore._validate import QScoreError
from qscore.scoring.summary import features_path
from qscore.tables import read_scores

__all__ = ["FEATURES", "SCORES", "is_finished", "publish", "work_folder"]

SCORES, FEATURES = "scores.parquet", "features.parquet"


@contextmanager
def work_folder(out: Path, fingerprint: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """Give the hidden folder beside an output in which it is prepared.

    What an earlier run of the same fingerprint left in it is still there; what another left is deleted. The folder
    goes when the output is there, when the input is refused, and when the disk is full. After anything else that ends a
    run, from a kill to a store that failed, it stays if it holds scans to go on with.

    Parameters
    ----------
    out : Path
        The output.
    fingerprint : dict
        What the work depends on, as JSON.
    resume : bool
        Whether to go on with what is there.

    Raises
    ------
    QScoreError
        If the folder cannot be written, or another process is at work in it.
    """
    folder = _folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            _take(lock, out)
            _begin(folder, fingerprint, resume=resume)
            try:
                yield folder
            except BaseException as error:
                if _is_refusal(error) or not _holds_work(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                if isinstance(error, StoreError):
                    raise StoreError(f"{error}; what was scanned is kept, and the same command goes on") from error
                raise
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise QScoreError(f"cannot write {out}: {error.strerror or error}") from error


def is_finished(folder: Path, out: Path) -> bool:
    """Tell whether an earlier run was killed when both tables were there, before or between moving them."""
    scores = folder / SCORES
    if not scores.exists():
        return False
    _, record = read_scores(scores, ["valid"])
    places = (folder / FEATURES, features_path(out))
    return any(place.exists() and sha256(place) == record["features_sha256"] for place in places)


def publish(folder: Path, out: Path) -> None:
    """Move both tables to their places; after a kill in between, the same command finishes this."""
    for part in folder.glob("*.arrow"):
        part.unlink()
    if (folder / FEATURES).exists():
        (folder / FEATURES).replace(features_path(out))
    (folder / SCORES).replace(out)


def sweep(out: Path) -> None:
    """Remove what a run left that was killed after its last move."""
    folder = _folder(out)
    if folder.is_dir() and out.exists() and not _holds_work(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.work")


def _holds_work(folder: Path) -> bool:
    return any(path.suffix in (".arrow", ".parquet", ".npz") for path in folder.rglob("[!.]*"))


def _is_refusal(error: BaseException) -> bool:
    """Tell whether to try again would be refused again, or needs the room that the folder takes."""
    if isinstance(error, StoreError):
        return False
    system = error if isinstance(error, OSError) else error.__cause__
    if isinstance(system, OSError):
        return system.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, QScoreError)


def _take(lock: Any, out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise QScoreError(f"{out}: another process is writing it") from None
    except OSError:  # a file system without locks
        return


def _begin(folder: Path, fingerprint: dict[str, Any], *, resume: bool) -> None:
    """Keep what belongs to this run, delete the rest, and note whose folder this is."""
    record = folder / "run.json"
    wanted = json.loads(to_json(fingerprint))
    same = resume and record.exists() and json.loads(record.read_text()) == wanted
    for path in folder.iterdir():
        if path.name == "lock" or (same and (not path.name.startswith(".") or path.suffix == ".work")):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with atomic_path(record) as temporary:
        temporary.write_text(to_json(wanted))
