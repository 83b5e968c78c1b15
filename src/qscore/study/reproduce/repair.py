"""Stage ``repair``: the regulariser and its controls on one checkpoint, that is, would anything have done."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qscore.images import ImageSource
from qscore.ssl.start import find_start
from qscore.study.arms import ARMS
from qscore.study.compare import compare
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.curve import Save, curve_encoder
from qscore.study.reproduce.results import Unit
from qscore.study.settings import Tuning

__all__ = ["STAGE", "compared", "rates", "run", "settings", "tuning", "tuning_batch", "units"]

log = logging.getLogger(__name__)

STAGE = "repair"
SETTINGS = (
    *(
        "repair_seeds",
        "repair_epochs",
        "tune_optimizer",
        "tune_batch_size",
        "paper_rate",
        "calibrated_share",
        "precision",
        "resamples",
    ),
    *("backbone", "recipe", "image_size", "curve_epochs", "curve_warmup"),
)
KEPT = ("epsilon", "n_discriminative", "settings", "start", "arms", "differences", "verdicts", "sentences", "seeds")


def units(context: Context) -> Iterator[Unit]:
    """Yield the one unit."""
    method = context.scale.repair_method
    yield context.unit(STAGE, method, method)


def settings(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what decides a unit's result, but for the images."""
    scale = context.scale.to_json()
    return {name: scale[name] for name in SETTINGS}


def run(context: Context, unit: Unit, save: Save) -> None:
    """Branch the last checkpoint of the curve into all arms, at the paper's learning rate and at the calibrated one."""
    scale = context.scale
    checkpoint = curve_encoder(context, unit.method)
    found: dict[str, Any] = {}
    chosen = rates(context, unit.method, tuning_batch(context, unit.method, checkpoint))
    for number, (name, rate) in enumerate(chosen.items(), 1):
        log.info("learning rate %d of %d: %s, %g", number, len(chosen), name, rate)
        comparison = compare(
            checkpoint,
            unit.method,
            context.train,
            context.work(unit) / name,
            test_images=context.test,
            arms=tuple(ARMS),
            seeds=scale.repair_seeds,
            overrides={"optimizer": scale.tune_optimizer},
            settings=tuning(context, scale.repair_epochs, rate),
            resamples=scale.resamples,
            seed=context.seed,
        )
        found[name] = {"learning_rate": rate, **compared(comparison)}
        save({"rates": found}, number == len(chosen))


def tuning_batch(context: Context, method: str, checkpoint: str | Path, train: ImageSource | None = None) -> int:
    """Return the images per step of a fine-tuning: the scale's, or those of the checkpoint's training."""
    chosen = context.scale.tune_batch_size
    batch: int = find_start(checkpoint, method, train or context.train, batch_size=chosen).config.batch_size
    return batch


def rates(context: Context, method: str, batch_size: int) -> dict[str, float]:
    """Return both learning rates, each settled before anything is measured."""
    scale = context.scale
    return {"paper": scale.paper_rate, "calibrated": scale.calibrated_rate(method, batch_size)}


def tuning(context: Context, epochs: int, rate: float) -> Tuning:
    """Return the settings of a fine-tuning: sums with the paper's weights, and epsilon as the training rows need it."""
    return replace(
        Tuning(),
        epochs=epochs,
        learning_rate=rate,
        batch_size=context.scale.tune_batch_size,
        device=context.device,
        workers=context.workers,
        precision=context.scale.precision,
    )


def compared(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result keeps of a comparison."""
    return {name: comparison[name] for name in KEPT}
