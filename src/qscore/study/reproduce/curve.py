"""Stage ``curve``: does Q fail from weakness or in principle? AUROC of Q and its rivals against probe accuracy."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qscore._validate import QScoreError
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.measuring import correct_rows, measure_encoder, paired_rise
from qscore.study.reproduce.results import Unit
from qscore.study.reproduce.scales import CONTROLS, named_methods
from qscore.study.reproduce.training import kept_checkpoints, make_random, train_method, train_supervised

__all__ = ["STAGE", "curve_encoder", "run", "settings", "units"]

log = logging.getLogger(__name__)

STAGE = "curve"
SETTINGS = (
    *("recipe", "image_size", "precision", "views", "resamples", "curve_epochs", "curve_keep", "curve_warmup"),
    "supervised_epochs",
)

Save = Callable[[Mapping[str, Any], bool], None]
"""Takes what was found, and whether that is all of it."""


def units(context: Context) -> Iterator[Unit]:
    """Yield the units: controls first, which are quick, then each method at each width."""
    methods = named_methods(context.scale.curve_methods, ("simclr", "vicreg"), "curve_methods")
    for method in (*reversed(CONTROLS), *methods):
        for width in context.backbones():
            yield context.unit(STAGE, f"{method}-{width}", method)


def settings(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what decides a unit's result, but for the images."""
    scale = context.scale.to_json()
    return {name: scale[name] for name in SETTINGS} | {"backbone": _backbone(context, unit)}


def run(context: Context, unit: Unit, save: Save) -> None:
    """Train as far as the scale says, and measure every checkpoint."""
    checkpoints = _checkpoints(context, unit)
    found: list[dict[str, Any]] = []
    before: Path | None = None
    for number, (epoch, encoder) in enumerate(checkpoints.items(), 1):
        log.info("checkpoint %d of %d: epoch %d of %s", number, len(checkpoints), epoch, unit.name)
        folder = context.work(unit) / f"epoch-{epoch:04d}"
        last = number == len(checkpoints)
        measured = measure_encoder(context, encoder, folder, keep=last)
        alive = "failed" not in measured
        rise = paired_rise(correct_rows(before), correct_rows(folder)) if before is not None and alive else None
        found.append({"epoch": epoch, "rise": rise, **measured})
        before = folder if alive else None
        save({"width": _width(unit), "checkpoints": found}, last)


def curve_encoder(context: Context, method: str) -> Path:
    """Return the folder of a method's finished training along the curve, at the scale's own backbone.

    Raises
    ------
    QScoreError
        If it is not finished.
    """
    width = next(iter(context.backbones()))
    unit = context.unit(STAGE, f"{method}-{width}", method)
    folder = context.encoder_folder(STAGE, unit.label)
    if not (folder / "encoder.safetensors").is_file():
        raise QScoreError(
            f"{folder} holds no finished encoder, from which this stage starts; run --stage curve --methods {method} "
            "first"
        )
    return folder


def _checkpoints(context: Context, unit: Unit) -> dict[int, Path]:
    """Return the encoders to be measured, by epoch, after training them."""
    scale, folder, backbone = context.scale, context.encoder_folder(STAGE, unit.label), _backbone(context, unit)
    if unit.method == "random":
        return {0: make_random(context, backbone, folder)}
    if unit.method == "supervised":
        return {scale.supervised_epochs: train_supervised(context, backbone, folder)}
    train_method(
        *(context, unit.method, context.train, folder),
        backbone=backbone,
        recipe=scale.recipe,
        epochs=scale.curve_epochs,
        keep_every=scale.curve_keep,
        warmup=scale.curve_warmup,
        image_size=scale.image_size,
    )
    return kept_checkpoints(folder, scale.curve_keep, scale.curve_epochs)


def _backbone(context: Context, unit: Unit) -> str:
    return context.backbones()[_width(unit)]


def _width(unit: Unit) -> int:
    return int(unit.name.rpartition("-")[2])
