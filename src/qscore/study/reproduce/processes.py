"""Commands of our own in processes of their own, which end with the one that started them."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from qscore.study.reproduce.results import Unit

__all__ = ["run_command", "run_processes"]

log = logging.getLogger(__name__)

LEAST = 0.05  # minutes that are worth starting a process for
HELD = (signal.SIGINT, signal.SIGTERM)


class Commands:
    """Processes that were started, of which none may be left behind."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def start(self, command: Sequence[str]) -> "subprocess.Popen[bytes] | None":
        """Start a process, unless all are to end."""
        main = threading.current_thread() is threading.main_thread()
        # An interrupt between the start and the note of it would lose the process; held, not masked, for children
        # inherit masks.
        held: list[int] = []
        handlers = {number: signal.signal(number, lambda n, _: held.append(n)) for number in HELD} if main else {}
        try:
            with self._lock:
                if self._stopping:
                    return None
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                self.running.add(process)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
        for missed in held:
            signal.raise_signal(missed)
        return process

    def stop(self) -> None:
        """Have every process save and end, and wait for it."""
        with self._lock:
            self._stopping = True
        for process in tuple(self.running):
            process.terminate()
        for process in tuple(self.running):
            process.wait()


def run_command(options: Sequence[str]) -> int:
    """Run ``qscore reproduce`` and return its exit code; an interrupt ends it first, and it saves."""
    commands = Commands()
    with _ending(commands):
        return _run(options, commands)


def run_processes(
    asked: Sequence[Unit], options: Sequence[str], processes: int, minutes: float | None
) -> Mapping[str, str]:
    """Run the commands of some units, a stage after the other, so many at a time.

    Parameters
    ----------
    asked : sequence of Unit
        In the order of the stages; those of a stage and a method share a command.
    options : sequence of str
        All options of the command but stage, methods and minutes.
    processes : int
        Commands at a time.
    minutes : float or None
        For all of them together.

    Returns
    -------
    mapping
        ``STAGE METHOD`` -> why its command failed.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, with the commands ended, and what they did saved.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    commands = Commands()

    def run(stage: str, method: str) -> int:
        left = None if end is None else (end - time.monotonic()) / 60
        if left is not None and left < LEAST:
            return 0
        log.info("stage %s, %s: a process of its own", stage, method)
        limit = [] if left is None else ["--minutes", f"{left:.3f}"]
        return _run(["--stage", stage, "--methods", method, *options, *limit], commands)

    failed: dict[str, str] = {}
    for stage in dict.fromkeys(unit.stage for unit in asked):
        methods = list(dict.fromkeys(unit.method for unit in asked if unit.stage == stage))
        with ThreadPoolExecutor(processes) as pool, _ending(commands, pool):
            for method, code in zip(methods, pool.map(partial(run, stage), methods), strict=True):
                if code:
                    failed[f"{stage} {method}"] = f"its command ended with code {code}; run it alone to see why"
    return failed


def _run(options: Sequence[str], commands: Commands) -> int:
    process = commands.start([sys.executable, "-m", "qscore", "reproduce", *options])
    if process is None:
        return 0
    code = process.wait()
    commands.running.discard(process)
    return code


@contextmanager
def _ending(commands: Commands, pool: ThreadPoolExecutor | None = None) -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does, and have every command save and end before the interrupt goes on."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
    try:
        yield
    except BaseException:
        if here:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the one that started this ends it while it waits
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        commands.stop()
        raise
    finally:
        if here:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
