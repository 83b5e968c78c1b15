"""One table from several processes, each with a device of its own: they compute parts, the first of them writes.

The processes are started here, or by a launcher such as torchrun, which gives each its number in the environment. They
share the output's folder and nothing else: a part is a file there, and goes into the table when its turn comes.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from qscore._validate import QScoreError
from qscore.embedding.network import pick_device
from qscore.embedding.parts import Job, Part, PartFolder, compute

__all__ = [
    "PAUSE",
    "Errand",
    "Rank",
    "find_rank",
    "launched",
    "pick_devices",
    "run_errands",
    "started_processes",
    "take_parts",
]

PAUSE = 0.05  # seconds


@dataclass(frozen=True)
class Rank:
    """Which of how many processes this is."""

    number: int
    count: int


@dataclass(frozen=True)
class Errand:
    """What the processes compute for one table."""

    job: Job
    shards: list[range]
    """Those that are missing."""
    folder: PartFolder

    def share(self, rank: Rank) -> list[range]:
        """Return the shards that are this process's, but for those that an earlier run left."""
        mine = [s for s in self.shards if s.start // self.job.per_shard % rank.count == rank.number]
        return [shard for shard in mine if not self.folder.file(shard).exists()]


def launched() -> Rank:
    """Return what a launcher such as torchrun says of this process; without one it is the only one."""
    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def find_rank(devices: int) -> Rank | None:
    """Return this process's number where a launcher started several, or None.

    Raises
    ------
    QScoreError
        If it started another number than ``devices``.
    """
    rank = launched()
    if devices == 1 or rank.count == 1:
        return None
    if rank.count != devices:
        raise QScoreError(f"devices: expected {rank.count}, as many as processes were launched, got {devices}")
    return rank


def pick_devices(name: str, devices: int, rank: Rank | None) -> list[torch.device]:
    """Return the device of each process that this one starts, or its own.

    Raises
    ------
    QScoreError
        If there are not as many.
    """
    if devices == 1:
        return [pick_device(name)]
    first = pick_device(name)
    if ":" in name:
        raise QScoreError(f"devices={devices}: expected the device as 'auto', 'cpu' or 'cuda', got {name!r}")
    numbers = range(devices) if rank is None else [int(os.environ.get("LOCAL_RANK", rank.number))]
    if first.type == "cpu":
        return [first for _ in numbers]
    if max(numbers) >= torch.cuda.device_count():
        raise QScoreError(f"devices={devices}: expected at most {torch.cuda.device_count()}, the GPUs of this machine")
    return [torch.device(first.type, i) for i in numbers]


def run_errands(errands: Sequence[Errand], rank: Rank, device: torch.device, after: Callable[[], object]) -> None:
    """Compute this process's share of every table; ``after`` is called whenever a part is there."""
    for errand in errands:
        shards = errand.share(rank)
        for part in compute(errand.job, shards, device, lambda _images, _rows: None):
            errand.folder.write(part)
            after()


def take_parts(errand: Errand) -> Iterator[Part | None]:
    """Give the parts of a table in their order; None each time that the next is not there yet."""
    for shard in errand.shards:
        while (part := errand.folder.take(shard)) is None:
            yield None
        yield part


@contextmanager
def started_processes(errands: Sequence[Errand], devices: Sequence[torch.device]) -> Iterator[Callable[[], None]]:
    """Start a process for each device, and end them all when the block ends.

    Yields
    ------
    callable
        Waits a moment; raises what a process raised, or `QScoreError` if no more parts can come.
    """
    context = multiprocessing.get_context("spawn")
    decoders = multiprocessing.get_start_method()
    payload = pickle.dumps(list(errands))
    running: list[tuple[BaseProcess, Connection]] = []
    done = False

    def watch() -> None:
        nonlocal done
        if done:
            folders = ", ".join(str(errand.folder.path) for errand in errands)
            raise QScoreError(f"a part has vanished from {folders}; one run at a time can write a table")
        _watch(running)
        done = all(process.exitcode == 0 for process, _ in running)

    try:
        for number, device in enumerate(devices):
            ours, theirs = context.Pipe()
            arguments = (Rank(number, len(devices)), str(device), torch.get_num_threads(), decoders, theirs)
            process: BaseProcess = context.Process(target=_run, args=arguments, name=f"qscore-embed-{number}")
            with _interrupts_waiting():
                process.start()
                running.append((process, ours))
            theirs.close()
        # Not among the arguments: they are written before a process has begun, and if it dies then, are waited for.
        for _, connection in running:
            with suppress(OSError):  # it has died, as will be said when its parts are missed
                connection.send_bytes(payload)
        yield watch
    finally:
        for process, _ in running:
            process.terminate()
        for process, connection in running:
            process.join()
            connection.close()


@contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Let Ctrl-C wait; processes started meanwhile never feel it, so that this one alone says that it came."""
    resource_tracker.ensure_running()  # starting it later would let interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(running: Sequence[tuple[BaseProcess, Connection]]) -> None:
    time.sleep(PAUSE)
    for number, (process, connection) in enumerate(running):
        error = _received(connection)
        if error is not None:
            raise error
        if process.exitcode:
            raise QScoreError(
                f"process {number + 1} of {len(running)} ended with code {process.exitcode}; "
                "the same command goes on where it stopped"
            )


def _received(connection: Connection) -> Exception | None:
    try:
        error: Exception | None = connection.recv() if connection.poll() else None
    except (EOFError, OSError):  # it has ended, or is about to
        return None
    return error


def _run(rank: Rank, device: str, threads: int, decoders: str, connection: Connection) -> None:
    """Do this process's share; what went wrong is sent, not printed."""
    parent = multiprocessing.parent_process()
    if parent is not None:  # if it is killed, nobody is left to take the parts
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Forked where that is the custom: spawned ones take long to come, and stay behind if this one dies meanwhile.
    multiprocessing.set_start_method(decoders, force=True)
    target = torch.device(device)
    if target.type == "cpu":
        torch.set_num_threads(max(1, threads // rank.count))
    try:
        run_errands(pickle.loads(connection.recv_bytes()), rank, target, lambda: None)
    except Exception as error:
        with suppress(OSError):  # there is nobody any more to tell
            connection.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return an error that outlasts the way to another process; where nobody foresaw it, with its traceback."""
    if not isinstance(error, QScoreError):
        error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # one that is made of other arguments than its message
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
