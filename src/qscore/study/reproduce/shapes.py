"""Stage ``shapes``: where attributes and masks are known, what do features stand for, and where do they look."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qscore._files import sha256
from qscore.embedding import embed
from qscore.encoders import load_encoder
from qscore.explain import explain_scores
from qscore.images import ImageSource, open_images
from qscore.scoring import features_path, score
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.curve import Save
from qscore.study.reproduce.measuring import EVALUATION, FITTED, claim_folder, made_of, measure_encoder
from qscore.study.reproduce.methods import fine_tuned, trained_out
from qscore.study.reproduce.results import Unit
from qscore.study.reproduce.scales import named_methods
from qscore.study.reproduce.training import kept_checkpoints, train_method, train_supervised

__all__ = ["CLAIMS", "STAGE", "explained", "run", "settings", "units"]

log = logging.getLogger(__name__)

STAGE = "shapes"
CONTROL = "supervised"
CLAIMS = ("C3", "C4", "C9", "C10")
NUMBERS = ("quantity", "statistic", "value", "low", "high")
SETTINGS = (
    *("backbone", "image_size", "precision", "views", "resamples", "shapes_train", "shapes_test", "shapes_free"),
    *("shapes_recipe", "shapes_epochs", "shapes_keep", "shapes_tune_epochs", "shapes_rows", "methods_rate"),
    *("tune_optimizer", "tune_batch_size", "paper_rate", "calibrated_share", "supervised_epochs"),
)


def units(context: Context) -> Iterator[Unit]:
    """Yield the supervised control, which needs the shape where the background misleads, and one unit a method."""
    known = ("simclr", "vicreg", "moco", "swav", "byol", "simsiam", "dino", "barlow")
    for method in (CONTROL, *named_methods(context.scale.shapes_methods, known, "shapes_methods")):
        yield context.unit(STAGE, method, method)


def settings(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what decides a unit's result."""
    scale = context.scale.to_json()
    return {name: scale[name] for name in SETTINGS}


def run(context: Context, unit: Unit, save: Save) -> None:
    """Train on drawn shapes, explain the encoder, fine-tune it, and explain what became of it."""
    scale, work = context.scale, context.work(unit)
    train, test, free = (open_images(name) for name in (scale.shapes_train, scale.shapes_test, scale.shapes_free))
    control = unit.method == CONTROL
    folder = _trained(replace(context, train=train), unit)
    log.info("1 of 4: the encoder is measured")
    found = measure_encoder(context, folder, work / "last", train=train, test=test)
    kept = {} if control else kept_checkpoints(folder, scale.shapes_keep, scale.shapes_epochs)
    found["rise"] = None if "failed" in found else trained_out(context, kept, work, train, test)
    save(found, "failed" in found)
    if "failed" in found:
        return
    log.info("2 of 4: its features are explained")
    start = work / "last"
    explanations = {"start": explained(context, test, folder, start, work / "explained" / "start")}
    other = _score_others(context, free, folder, start, work / "free")
    explanations["free"] = explained(context, free, folder, other, work / "explained" / "free")
    explanations["free"]["points"] = _points(work / "explained" / "free")
    found["explained"] = explanations
    save(found, control)
    if control:
        return
    log.info("3 of 4: it is fine-tuned")
    found["tuned"] = fine_tuned(
        *(context, unit.method, folder, work / "tuned", train, test), epochs=scale.shapes_tune_epochs
    )
    save(found, False)
    log.info("4 of 4: what became of it is explained")
    arms = {name: work / "tuned" / "arms" / name / f"seed-{context.seed}" for name in ("plain", "qscore")}
    if "refused" not in found["tuned"] and all((arm / "scores.parquet").exists() for arm in arms.values()):
        place = work / "explained"
        explained(context, test, arms["plain"], arms["plain"], place / "plain")
        for before in ("start", "plain"):
            explanations[f"from-{before}"] = explained(
                context, test, arms["qscore"], arms["qscore"], place / f"from-{before}", before=place / before
            )
    save(found, True)


def _trained(context: Context, unit: Unit) -> Path:
    scale, folder = context.scale, context.encoder_folder(STAGE, unit.label)
    if unit.method == CONTROL:
        return train_supervised(context, scale.backbone, folder)
    return train_method(
        *(context, unit.method, context.train, folder),
        backbone=scale.backbone,
        recipe=scale.shapes_recipe,
        epochs=scale.shapes_epochs,
        keep_every=scale.shapes_keep,
        warmup=None,
        image_size=scale.image_size,
    )


def explained(
    context: Context,
    images: ImageSource,
    encoder: str | Path,
    scored: Path,
    out: Path,
    *,
    before: Path | None = None,
) -> dict[str, Any]:
    """Return verdicts and numbers of an explanation; one that is there already is read."""
    options = {"rows": context.scale.shapes_rows, "resamples": context.scale.resamples, "seed": context.seed}
    scores = {"scores": sha256(scored / "scores.parquet"), "before": None if before is None else before.name}
    claim_folder(out, made_of(load_encoder(encoder), images) | options | scores)
    file, evaluation = out / "explain.json", scored / EVALUATION
    if not file.exists():
        explain_scores(
            images,
            encoder,
            scored / "scores.parquet",
            out,
            masks="shapes",
            evaluation=evaluation if evaluation.exists() else None,
            embeddings=scored / "embeddings",
            before=before,
            rows=context.scale.shapes_rows,
            device=context.device,
            resamples=context.scale.resamples,
            seed=context.seed,
            overwrite=True,
        )
    return _kept(json.loads(file.read_text()))


def _kept(result: Mapping[str, Any]) -> dict[str, Any]:
    claims = result["claims"]
    return {
        "n": result["n_measured"],
        "verdicts": {name: claims["verdicts"][name] for name in CLAIMS if name in claims["verdicts"]},
        "conditions": claims["conditions"],
        "reasons": claims.get("reasons", {}),
        "records": [{name: row[name] for name in NUMBERS} for row in claims["records"]],
        "scatter": {name: result["scatter"][name] for name in ("carries", "carries_class") if result.get("scatter")},
    }


def _points(explanation: Path) -> dict[str, Any]:
    """Return what each feature carries, and where it looks."""
    points: dict[str, Any] = json.loads((explanation / "explain.json").read_text())["scatter"]["points"]
    return points


def _score_others(context: Context, images: ImageSource, encoder: Path, start: Path, folder: Path) -> Path:
    """Score other images of the same encoder by the same D."""
    loaded, fitted = load_encoder(encoder), features_path(start / FITTED)
    claim_folder(folder, made_of(loaded, images) | {"features": sha256(fitted)})
    embed(
        images,
        loaded,
        folder / "embeddings",
        on_error="raise",
        batch_size=context.scale.batch_size,
        device=context.device,
        workers=context.workers,
    )
    score(folder / "embeddings", folder / "scores.parquet", features=fitted, overwrite=True)
    return folder
