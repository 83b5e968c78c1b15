"""The arms of a comparison: one checkpoint, branched into a treatment and its controls."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qscore._files import atomic_path, to_json
from qscore._validate import QScoreError, nearest
from qscore.encoders import load_encoder
from qscore.ssl.finetune import tune, tuned_history
from qscore.ssl.module import Feed
from qscore.ssl.run import RunFolder
from qscore.ssl.start import Start
from qscore.ssl.watch import Diverged
from qscore.study.finetune import Prepared, gradient_ratios
from qscore.study.measure import Discovered, Measured, measure
from qscore.study.settings import Tuning, make_addition

__all__ = ["ARMS", "Arm", "Outcome", "choose_arms", "run_arm"]

log = logging.getLogger(__name__)

FAILURE = "diverged.json"


@dataclass(frozen=True)
class Arm:
    """One way to go on from a checkpoint."""

    title: str
    regularizer: str
    """Of `REGULARIZERS`, or ``"random-d"``."""
    moves: bool = True
    """Whether weights are trained; else the learning rate is 0, and only BatchNorm's statistics move."""


ARMS: dict[str, Arm] = {
    "lr0": Arm("learning rate 0", "none", moves=False),
    "plain": Arm("plain", "none"),
    "lasso": Arm("Lasso", "lasso"),
    "qscore": Arm("Q-Score", "qscore"),
    "random-d": Arm("Q with a random D", "random-d"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of an arm with one seed."""

    arm: str
    seed: int
    measured: Measured | None
    """None where it diverged."""
    gradient_ratios: dict[str, dict[str, float]]
    failed: str | None = None
    """Why it diverged."""


def choose_arms(names: Sequence[str]) -> tuple[str, ...]:
    """Return the arms asked for, in the order of `ARMS`.

    Raises
    ------
    QScoreError
        If one is unknown, or there are none.

    Examples
    --------
    >>> choose_arms(["qscore", "plain"])
    ('plain', 'qscore')
    """
    for name in names:
        if name not in ARMS:
            raise QScoreError(f"arm {name!r}: expected some of {', '.join(ARMS)}{nearest(name, ARMS)}")
    if not names:
        raise QScoreError(f"arms: expected some of {', '.join(ARMS)}, got none")
    return tuple(name for name in ARMS if name in names)


def run_arm(
    name: str,
    seed: int,
    folder: Path,
    *,
    made: Prepared,
    start: Start,
    feeds: Callable[[int], Feed],
    D: Discovered,
    tuning: Tuning,
    data: str,
    probe_seed: int,
) -> Outcome:
    """Fine-tune by one arm with one seed, and measure; what is in its folder already is taken from there.

    Parameters
    ----------
    name : str
        Of `ARMS`.
    seed : int
        Of the order of the images, of their views, and of a random D: the same for all arms.
    folder : Path
        Of this arm and seed alone; an encoder directory afterwards.
    made, start, feeds, D, tuning, data
        What all arms share.
    probe_seed : int
        Of the probe: the same for all arms and seeds.
    """
    arm = ARMS[name]
    place = RunFolder(folder, "finetune.json")
    record = made.record | {"regularizer": arm.regularizer, "arm": name, "data": data, "seed": seed}
    record["learning_rate"] = tuning.learning_rate if arm.moves else 0.0
    if (folder / FAILURE).exists():
        reason = json.loads((folder / FAILURE).read_text())["reason"]
        return Outcome(name, seed, None, _noted(folder), reason)
    place.check(record, overwrite=False)
    place.begin(record, overwrite=False)
    try:
        weights = tune(
            start,
            feeds,
            place,
            epochs=tuning.epochs,
            learning_rate=record["learning_rate"],
            schedule=tuning.schedule,
            seed=seed,
            addition=make_addition(arm.regularizer, tuning, D, start, made.train, seed),
            hardware=tuning.hardware,
            extra=record,
        )
        encoder = load_encoder(weights)
        measured = measure(
            folder, encoder, made.train, made.test, epsilon=D.epsilon, hardware=tuning.hardware, seed=probe_seed
        )
    except Diverged as error:
        log.warning("arm %s, seed %d diverged: %s", name, seed, error)
        with atomic_path(folder / FAILURE) as file:
            file.write_text(to_json({"reason": str(error)}) + "\n")
        return Outcome(name, seed, None, _noted(folder), str(error))
    return Outcome(name, seed, measured, gradient_ratios(tuned_history(folder)))


def _noted(folder: Path) -> dict[str, Any]:
    return gradient_ratios(tuned_history(folder)) if (folder / "history.json").exists() else {}
