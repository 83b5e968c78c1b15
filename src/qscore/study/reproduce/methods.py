"""Stage ``methods``: all eight methods alike, measured and fine-tuned, and marked where they are undertrained."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from qscore._validate import one_line
from qscore.encoders import load_encoder
from qscore.images import ImageSource
from qscore.ssl import METHODS
from qscore.ssl.watch import Diverged
from qscore.study.compare import compare
from qscore.study.measure import ROWS, measure
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.curve import Save
from qscore.study.reproduce.measuring import claim_folder, correct_rows, made_of, measure_encoder, paired_rise
from qscore.study.reproduce.repair import compared, rates, tuning, tuning_batch
from qscore.study.reproduce.results import Unit
from qscore.study.reproduce.training import kept_checkpoints, train_method
from qscore.study.settings import Unfit

__all__ = ["ARMS", "STAGE", "fine_tuned", "run", "settings", "trained_out", "units"]

log = logging.getLogger(__name__)

STAGE = "methods"
ARMS = ("lr0", "plain", "qscore")
SETTINGS = (
    *("backbone", "methods_recipe", "image_size", "precision", "views", "resamples", "methods_epochs", "methods_keep"),
    *(
        "methods_warmup",
        "methods_tune_epochs",
        "methods_rate",
        "tune_optimizer",
        "tune_batch_size",
        "paper_rate",
        "calibrated_share",
    ),
)


def units(context: Context) -> Iterator[Unit]:
    """Yield one unit for each method."""
    for method in METHODS:
        yield context.unit(STAGE, method, method)


def settings(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what decides a unit's result, but for the images."""
    scale = context.scale.to_json()
    released = context.checkpoints.get(unit.method)
    return {name: scale[name] for name in SETTINGS} | {"released": None if released is None else Path(released).name}


def run(context: Context, unit: Unit, save: Save) -> None:
    """Train, or take a released encoder; evaluate; fine-tune with Q-Score regularisation, plain, and at rate 0."""
    scale, work = context.scale, context.work(unit)
    released = context.checkpoints.get(unit.method)
    found: dict[str, Any] = {"rise": None}
    encoder: str | Path
    if released is not None:
        encoder = released
        found |= measure_encoder(context, encoder, work / "last")
    else:
        encoder = train_method(
            *(context, unit.method, context.train, context.encoder_folder(STAGE, unit.label)),
            backbone=scale.backbone,
            recipe=scale.methods_recipe,
            epochs=scale.methods_epochs,
            keep_every=scale.methods_keep,
            warmup=scale.methods_warmup,
            image_size=scale.image_size,
        )
        found |= measure_encoder(context, encoder, work / "last")
        kept = kept_checkpoints(encoder, scale.methods_keep, scale.methods_epochs)
        if "failed" not in found:
            found["rise"] = trained_out(context, kept, work, context.train, context.test)
    save(found, "failed" in found)
    if "failed" in found:
        return
    found["tuned"] = fine_tuned(
        *(context, unit.method, encoder, work / "tuned", context.train, context.test),
        epochs=scale.methods_tune_epochs,
    )
    save(found, True)


def trained_out(
    context: Context, kept: dict[int, Path], work: Path, train: ImageSource, test: ImageSource
) -> dict[str, Any] | None:
    """Return by how much the probe rose from the last but one checkpoint to the last; None if there is nothing before.

    A checkpoint whose representations are not finite, or all the same, is nothing.
    """
    if len(kept) < 2:
        return None
    before = sorted(kept)[-2]
    encoder = load_encoder(kept[before])
    folder = claim_folder(work / "last-but-one", made_of(encoder, train, test) | {"seed": context.seed})
    try:
        measure(folder, encoder, train, test, epsilon="auto", hardware=context.hardware, seed=context.seed)
    except Diverged as error:
        log.warning("epoch %d cannot be measured: %s", before, error)
        return None
    table = pq.read_table(folder / ROWS, columns=["id", "accuracy"]).sort_by("id")
    earlier = np.asarray(table.column("accuracy").to_numpy()) == 1
    return {"epoch": before, **paired_rise(earlier, correct_rows(work / "last"))}


def fine_tuned(
    context: Context,
    method: str,
    encoder: str | Path,
    out: Path,
    train: ImageSource,
    test: ImageSource,
    *,
    epochs: int,
) -> dict[str, Any]:
    """Return a comparison of Q-Score regularisation with plain fine-tuning and with learning rate 0, one seed each.

    Of an encoder that cannot be fine-tuned so (its features are signed, its D is empty, a training diverges), the
    reason is the finding.
    """
    scale = context.scale
    rate = rates(context, method, tuning_batch(context, method, encoder, train))[scale.methods_rate]
    try:
        comparison = compare(
            encoder,
            method,
            train,
            out,
            test_images=test,
            arms=ARMS,
            seeds=1,
            overrides={"optimizer": scale.tune_optimizer},
            settings=tuning(context, epochs, rate),
            resamples=scale.resamples,
            seed=context.seed,
        )
    except (Diverged, Unfit) as error:
        log.warning("%s is not fine-tuned: %s", method, one_line(error))
        return {"learning_rate": rate, "refused": one_line(error)}
    return {"learning_rate": rate, **compared(json.loads(json.dumps(comparison)))}
