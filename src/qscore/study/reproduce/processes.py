"""Several methods at a time, each a command in a process of its own."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from qscore.study.reproduce.results import Unit

__all__ = ["run_processes"]

log = logging.getLogger(__name__)

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

    def run(stage: str, method: str) -> int:
        left = None if end is None else (end - time.monotonic()) / 60
        if left is not None and left < LEAST:
            return 0
        log.info("stage %s, %s: a process of its own", stage, method)
        command = [sys.executable, "-m", "qscore", "reproduce", "--stage", stage, "--methods", method, *options]
        command += [] if left is None else ["--minutes", f"{left:.3f}"]
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode

    failed: dict[str, str] = {}
    for stage in dict.fromkeys(unit.stage for unit in asked):
        methods = list(dict.fromkeys(unit.method for unit in asked if unit.stage == stage))
        pool = ThreadPoolExecutor(processes)
        try:
            for method, code in zip(methods, pool.map(partial(run, stage), methods), strict=True):
                if code:
                    failed[f"{stage} {method}"] = f"its command ended with code {code}; run it alone to see why"
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C has reached the commands too, and they are saving
    return failed
