"""Result files: one a stage, method and seed, with all that is needed to judge and to repeat it."""

import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from qscore import __version__
from qscore._files import atomic_path, to_json
from qscore._validate import QScoreError

__all__ = ["FOLDER", "STAGES", "Unit", "compact", "read_results", "software", "timed", "titled", "write_result"]

VERSION = 1
FOLDER = "results"
STAGES = ("curve", "repair", "methods", "shapes", "sensitivity")
SCALES = ("small", "medium", "paper")
DIGITS = 6
EVERY = 30.0  # seconds between notes of the time
PACKAGES = ("torch", "lightning", "lightly", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Unit:
    """What is computed, skipped and resumed as one: a stage of one method with one seed."""

    scale: str
    stage: str
    name: str
    """Of the method, with its width where there are several."""
    method: str
    """As ``--methods`` takes it."""
    seed: int
    subset: str = ""
    """The list of classes that were taken, such as ``imagenet100``; empty for all."""

    @property
    def key(self) -> str:
        """Name of its result file."""
        return f"{self.scale}-{self.stage}-{self.name}{self._of_subset}-seed{self.seed}"

    @property
    def label(self) -> str:
        """Name of the encoder, as folders have it."""
        return self.name + self.ending

    @property
    def ending(self) -> str:
        """What follows the name in a label."""
        return self._of_subset + (f"-seed{self.seed}" if self.seed else "")

    @property
    def _of_subset(self) -> str:
        return f"-{self.subset}" if self.subset else ""


def titled(result: Mapping[str, Any]) -> str:
    """Return what to call a result's encoder: its name, and what sets it apart from others of that name.

    Examples
    --------
    >>> titled({"name": "simclr-2048", "subset": "imagenet100", "seed": 1})
    'simclr-2048, imagenet100, seed 1'
    """
    seed = f"seed {result['seed']}" if result["seed"] else ""
    return ", ".join(part for part in (str(result["name"]), result.get("subset", ""), seed) if part)


def compact(value: Any) -> Any:
    """Return a value with its floats rounded to six significant digits, and NaN as None.

    Examples
    --------
    >>> compact({"a": [1 / 3, float("nan"), 2]})
    {'a': [0.333333, None, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): compact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [compact(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def write_result(folder: Path, unit: Unit, record: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write a unit's result, whole or not at all.

    Parameters
    ----------
    folder : Path
        Of the result files.
    unit : Unit
        What was computed.
    record : mapping
        ``complete``, ``settings``, ``images``, ``command``, ``seconds``, ``trained_here``, ``hardware``, ``software``.
    found : mapping
        The numbers.
    """
    head = {"version": VERSION, "scale": unit.scale, "stage": unit.stage, "name": unit.name, "method": unit.method}
    content = compact({**head, "seed": unit.seed, "subset": unit.subset, **record, "found": found})
    with atomic_path(folder / f"{unit.key}.json") as file:
        lines = [f'"{name}": {to_json(value)}' for name, value in content.items()]  # short, and yet a line for each
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return all results of a folder, by scale, stage, name and seed.

    Raises
    ------
    QScoreError
        If a file is no result.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            result = json.loads(file.read_text())
            place = (SCALES.index(result["scale"]), STAGES.index(result["stage"]), titled(result))
            if result["version"] != VERSION or not isinstance(result["found"], dict):
                raise ValueError(f"version {result['version']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QScoreError(f"{file}: cannot read this result: {error}; remove it, or make it anew") from error
        found.append((place, result))
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


def software() -> dict[str, str]:
    """Return the versions of what computes."""
    return {"qscore": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in PACKAGES
    }


def processor() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device: str) -> dict[str, Any]:
    """Return what computes: device, processor, and the cores that may be used."""
    import torch

    from qscore.kernels.cpu import usable_cores
    from qscore.ssl.hardware import device_of

    target = device_of(device)
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else target.type
    return {"device": name, "processor": processor(), "cores": usable_cores(), "threads": torch.get_num_threads()}


@contextmanager
def timed(file: Path) -> Iterator[Callable[[], None]]:
    """Add the time that a block takes to what earlier calls noted; yields what notes it before.

    It is noted every half a minute besides, since a block may be killed.
    """
    before = elapsed(file)
    begun = time.monotonic()
    ended = threading.Event()

    def note() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text(f"{before + time.monotonic() - begun:.2f}\n")

    def keep_noting() -> None:
        while not ended.wait(EVERY):
            with suppress(QScoreError):
                note()

    watch = threading.Thread(target=keep_noting, daemon=True)
    watch.start()
    try:
        yield note
    finally:
        ended.set()
        watch.join()
        with suppress(QScoreError):  # which would stand in the way of what ended the block
            note()


def elapsed(file: Path) -> float:
    """Return the seconds noted so far."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


def short_name(source: str) -> str:
    """Return a source of images as a command may name it anywhere: files without their folders."""
    return os.path.basename(source.rstrip("/")) if os.sep in source and ":" not in source else source  # noqa: PTH119
