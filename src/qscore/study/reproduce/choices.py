"""Which setting of Q to use where there are no labels: chosen on other methods, by labels of training images alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qscore.study.reproduce.sensitivity import AUTOMATIC, PAPERS

__all__ = ["Choice", "choose_settings", "mean_by_factor"]

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """The setting that is label-free at use for one encoder."""

    source: str
    method: str
    setting: str | None
    """The best on other methods' training images; None where there is no other method."""
    test: Found | None
    """Its AUROC on test rows, with interval."""
    papers: Found | None
    """That of the paper's setting."""
    automatic: Found | None
    """That of the paper's setting with automatic epsilon."""


def choose_settings(results: Sequence[Found]) -> list[Choice]:
    """Choose a setting for each encoder by the mean AUROC on held-out training rows of all other methods' encoders.

    Each of the other methods counts once, however many encoders it has; of several best settings the first is taken.
    Settings that one of them lacks do not take part.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``sensitivity`` at one scale.
    """
    sources = [(result["method"], source) for result in results for source in result["found"]["sources"]]
    found = []
    for method, source in sources:
        by_method: dict[str, list[Found]] = {}
        for other, one in sources:
            if other != method:
                by_method.setdefault(other, []).append(one["settings"])
        setting = _best(list(by_method.values()), list(source["settings"]))
        tests = {name: (of or {}).get("test") for name, of in source["settings"].items()}
        test = None if setting is None else tests[setting]
        found.append(Choice(source["source"], method, setting, test, tests.get(PAPERS), tests.get(AUTOMATIC)))
    return found


def _best(methods: Sequence[Sequence[Found]], names: Sequence[str]) -> str | None:
    means = {}
    for name in names:
        values = [[of.get(name, {}).get("train") for of in encoders] for encoders in methods]
        if values and all(value is not None for encoders in values for value in encoders):
            means[name] = float(np.mean([np.mean(encoders) for encoders in values]))
    return max(means, key=means.__getitem__) if means else None


def mean_by_factor(results: Sequence[Found], names: Sequence[str]) -> dict[str, tuple[float | None, float | None]]:
    """Return some settings' mean AUROC on held-out training rows and on test rows, over all encoders that have it.

    None where none has.
    """
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in names:
        of = [s["settings"].get(name, {}) for r in results for s in r["found"]["sources"]]
        found[name] = _mean(one.get("train") for one in of), _mean((one.get("test") or {}).get("value") for one in of)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
