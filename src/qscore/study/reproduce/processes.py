"""Several methods at a time, each a command in a process of its own."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from qscore.study.reproduce.results import Unit

__all__ = ["run_processes"]

log = logging.getLogger(__name__)

PAUSE = 0.2  # seconds between looks at what has ended
LEAST = 0.05  # minutes that are worth starting a process for


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
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    failed: dict[str, str] = {}
    for stage in dict.fromkeys(unit.stage for unit in asked):
        waiting = list(dict.fromkeys(unit.method for unit in asked if unit.stage == stage))
        running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                left = None if end is None else (end - time.monotonic()) / 60
                if left is not None and left < LEAST:
                    waiting = []
                while waiting and len(running) < processes:
                    method = waiting.pop(0)
                    log.info("stage %s, %s: a process of its own", stage, method)
                    running[method] = _start(stage, method, options, left)
                for method in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(method).returncode
                    if code:
                        failed[f"{stage} {method}"] = f"its command ended with code {code}; run it alone to see why"
                time.sleep(PAUSE)
        except KeyboardInterrupt:
            for process in running.values():  # Ctrl-C has reached them too, and they are saving
                process.wait()
            raise
    return failed


def _start(stage: str, method: str, options: Sequence[str], minutes: float | None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "qscore", "reproduce", "--stage", stage, "--methods", method, *options]
    if minutes is not None:
        command += ["--minutes", f"{minutes:.3f}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)
