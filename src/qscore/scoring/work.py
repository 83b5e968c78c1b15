"""The folder of a run that is under way: what it has done, so that the same command can go on after a kill."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qscore._files import atomic_path, to_json
from qscore._validate import QScoreError
from qscore.tables import StoreError

__all__ = ["work_folder"]


@contextmanager
def work_folder(out: Path, fingerprint: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """Give the hidden folder beside an output in which it is prepared.

    What an earlier run of the same fingerprint left in it is still there; what another left is deleted. The folder
    stays after a kill, an interruption or a failure to read, if it holds scans to go on with. It goes when the output
    is there, when the input is refused, and when the disk is full.

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
    folder = out.with_name(f".{out.name}.work")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            _take(lock, out)
            _begin(folder, fingerprint, resume=resume)
            try:
                yield folder
            except (KeyboardInterrupt, StoreError) as error:
                if not any(folder.glob("*.arrow")):
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                if isinstance(error, StoreError):
                    raise StoreError(f"{error}; what was scanned is kept, and the same command goes on") from error
                raise
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise QScoreError(f"cannot write {out}: {error.strerror or error}") from error


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
        if path.name != "lock" and (not same or path.name.startswith(".")):
            path.unlink()
    with atomic_path(record) as temporary:
        temporary.write_text(to_json(wanted))
