"""`finetune`: from a checkpoint to a repaired encoder, and what came of it on the same test rows."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qscore._files import atomic_path, sha256, to_json
from qscore._validate import QScoreError, nearest
from qscore.encoders import Encoder, load_encoder
from qscore.evaluate import bootstrap
from qscore.images import ImageSource
from qscore.ssl.finetune import make_feeds, tune, tuned_history, warm_up, where_images_go
from qscore.ssl.run import RunFolder
from qscore.ssl.start import Start, find_start
from qscore.study.measure import Discovered, Measured, discover, measure, read_discovered
from qscore.study.paired import bootstrap_means, interval, minimum_effect, shown_from
from qscore.study.settings import REGULARIZERS, Tuning, make_addition, refuse_empty, refuse_own_folder, refuse_unfit
from qscore.study.splits import train_and_test

__all__ = ["Prepared", "finetune", "gradient_ratios", "prepare", "summary"]

log = logging.getLogger(__name__)

MORE = ("warmup", "before", "after", "metrics.json", "history.json")


@dataclass(frozen=True)
class Prepared:
    """All that fine-tunings from one checkpoint share."""

    start: Start
    """Without a state, where heads are still to be made."""
    train: ImageSource
    test: ImageSource
    given: Discovered | None
    """D as the user gives it."""
    record: dict[str, Any]
    """What decides the result, apart from the regulariser and the seed of the training."""


def finetune(
    checkpoint: str | Path | Encoder,
    method: str,
    images: str | Path | ImageSource,
    out: str | Path,
    *,
    test_images: str | Path | ImageSource | None = None,
    regularizer: str = "qscore",
    features: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Tuning | None = None,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune a pre-trained encoder with Q-Score regularisation, and measure it before and after.

    D is found with the encoder as it comes, on the training images preprocessed as for evaluation. The method's own
    loss goes on, with the regulariser on the representations of both global views. The same call again continues where
    an earlier one stopped; on a CPU the weights are then bit for bit those of an unbroken one.

    Parameters
    ----------
    checkpoint : str, Path or Encoder
        A directory of `pretrain` or `finetune`: its heads, momentum encoder and queue are used, and must be the
        method's. Or whatever `load_encoder` takes: it gets fresh heads, trained first with the encoder frozen.
    method : str
        ``"simclr"``, ``"moco"``, ``"swav"``, ``"byol"``, ``"simsiam"``, ``"dino"``, ``"vicreg"`` or ``"barlow"``.
    images : str, Path or ImageSource
        To train on: what `open_images` understands.
    out : str or Path
        Folder for ``encoder.safetensors``, ``last.ckpt``, ``finetune.json``, ``metrics.json``, ``history.json``,
        ``logs``, and ``before`` and ``after`` with embeddings and scores.
    test_images : str, Path or ImageSource, optional
        To measure on; by default a fifth of ``images`` is held out from the training, by label if there are any.
    regularizer : {"qscore", "lasso", "none"}
        What is added to the loss.
    features : str or Path, optional
        A feature table with D, as `score` writes it, instead of finding it.
    overrides : mapping, optional
        Values for fields of the method's settings, such as ``{"optimizer": "sgd"}``.
    settings : Tuning, optional
        Epochs, learning rate, weights, and what to run on.
    resamples : int, default=2000
        Bootstrap resamples of the test rows.
    seed : int, default=0
        Of everything random.
    overwrite : bool
        Whether another fine-tuning found in the folder is removed.

    Returns
    -------
    dict
        The content of ``metrics.json``: ``encoder``, ``n_train``, ``n_test``, ``epsilon``, ``discriminative``,
        ``before`` and ``after`` (metric -> value, low, high), ``change`` (the same, with ``relative`` and
        ``minimum_effect``), ``gradient_ratios``, ``sentences``.

    Raises
    ------
    QScoreError
        If an argument cannot be used, the heads are another method's, the encoder is signed or D of another width, the
        folder holds something else, or the training diverges.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, with all that was done saved.
    """
    tuning = settings or Tuning()
    refuse_own_folder(checkpoint, out)
    if regularizer not in REGULARIZERS:
        raise QScoreError(
            f"regularizer {regularizer!r}: expected one of {', '.join(REGULARIZERS)}"
            f"{nearest(regularizer, REGULARIZERS)}"
        )
    made = prepare(
        checkpoint,
        method,
        images,
        test_images,
        kinds=(regularizer,),
        features=features,
        overrides=overrides,
        tuning=tuning,
        resamples=resamples,
        seed=seed,
    )
    folder = RunFolder(Path(out), "finetune.json", MORE)
    data = where_images_go(made.train, made.start, tuning.hardware, None if overwrite else folder.recorded("data"))
    record = made.record | {"regularizer": regularizer, "data": data, "seed": seed}
    folder.check(record, overwrite=overwrite)
    folder.begin(record, overwrite=overwrite)
    D = made.given or discover(folder.path / "before", made.start.encoder, made.train, tuning.epsilon, tuning.hardware)
    refuse_empty((regularizer,), D)
    before = _measure(folder.path / "before", made.start.encoder, made, D.epsilon, tuning, seed)
    feeds = make_feeds(made.start, made.train, tuning.hardware, data)
    start = warm_up(made.start, feeds, folder.path / "warmup", tuning.warmup_heads, seed=seed, hardware=tuning.hardware)
    addition = make_addition(regularizer, tuning, D, start, made.train, seed)
    weights = tune(
        start,
        feeds,
        folder,
        epochs=tuning.epochs,
        learning_rate=tuning.learning_rate,
        schedule=tuning.schedule,
        seed=seed,
        addition=addition,
        hardware=tuning.hardware,
        extra=record,
    )
    after = _measure(folder.path / "after", load_encoder(weights), made, D.epsilon, tuning, seed)
    metrics = _compare(before, after, resamples, seed)
    history = tuned_history(folder.path)
    metrics = {
        "encoder": str(weights),
        "method": method,
        "regularizer": regularizer,
        "n_train": len(made.train),
        "n_test": len(made.test),
        "epsilon": D.epsilon,
        "discriminative": len(D.indices),
        "coverage": D.coverage,
        **metrics,
        "gradient_ratios": gradient_ratios(history),
        "probe": {"before": before.probe, "after": after.probe},
    }
    metrics["sentences"] = _sentences(metrics, None if made.given is None else made.given.table)
    with atomic_path(folder.path / "metrics.json") as file:
        file.write_text(to_json(metrics, indent=2) + "\n")
    return metrics


def prepare(
    checkpoint: str | Path | Encoder,
    method: str,
    images: str | Path | ImageSource,
    test_images: str | Path | ImageSource | None,
    *,
    kinds: tuple[str, ...],
    features: str | Path | None,
    overrides: Mapping[str, Any] | None,
    tuning: Tuning,
    resamples: int,
    seed: int,
) -> Prepared:
    """Open and check everything, before anything is computed or written.

    Raises
    ------
    QScoreError
        As `finetune`.
    """
    tuning.check()
    if seed < 0 or resamples < 1:
        raise QScoreError(f"expected seed >= 0 and resamples >= 1, got {seed} and {resamples}")
    train, test = train_and_test(images, test_images, seed)
    if test_images is None:
        log.info("%d images to train on, %d held out to measure", len(train), len(test))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        start = find_start(
            checkpoint,
            method,
            train,
            overrides=overrides,
            batch_size=tuning.batch_size,
            warmup_epochs=tuning.warmup_heads,
        )
    given = None if features is None else read_discovered(features)
    refuse_unfit(kinds, start.encoder, given, tuning.epsilon)
    record = start.to_json() | tuning.to_json() | {"images": train.fingerprint, "test_images": test.fingerprint}
    record["features"] = None if features is None else sha256(features)
    return Prepared(start, train, test, given, record)


def _measure(folder: Path, encoder: Encoder, made: Prepared, epsilon: float, tuning: Tuning, seed: int) -> Measured:
    return measure(folder, encoder, made.train, made.test, epsilon=epsilon, hardware=tuning.hardware, seed=seed)


def summary(measured: Measured, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the mean of each metric over the test rows, and how well Q predicts failure, with 95 % intervals."""
    names = list(measured.rows)
    drawn = bootstrap_means(np.stack([measured.rows[name] for name in names], 1), resamples=resamples, seed=seed)
    found: dict[str, Any] = {name: asdict(interval(drawn[:, k])) for k, name in enumerate(names)}
    if "accuracy" in measured.rows:
        correct = measured.rows["accuracy"] == 1
        if 0 < correct.sum() < len(correct):
            statistics, _ = bootstrap({"q": measured.rows["q"]}, correct, resamples=resamples, seed=seed)
            found["auroc"] = asdict(statistics["q"]["auroc"])
    return found


def _compare(before: Measured, after: Measured, resamples: int, seed: int) -> dict[str, Any]:
    names = [name for name in before.rows if name in after.rows]
    both = [np.stack([measured.rows[name] for name in names], 1) for measured in (before, after)]
    unknown = np.isnan(both[0]) | np.isnan(both[1])
    first, second = (np.where(unknown, np.nan, rows) for rows in both)
    drawn = bootstrap_means(np.concatenate([first, second], 1), resamples=resamples, seed=seed)
    change: dict[str, Any] = {}
    for k, name in enumerate(names):
        a, b = drawn[:, k], drawn[:, len(names) + k]
        change[name] = asdict(interval(b - a)) | {"minimum_effect": minimum_effect(second[:, k] - first[:, k])}
        with np.errstate(invalid="ignore", divide="ignore"):
            change[name]["relative"] = asdict(interval(b / a - 1))
    return {
        "before": summary(before, resamples=resamples, seed=seed),
        "after": summary(after, resamples=resamples, seed=seed),
        "change": change,
    }


def gradient_ratios(history: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return each term's gradient norm over the loss's at the first step, and its mean over those noted."""
    names = [name for name in (history[0] if history else {}) if name.startswith("gradient_ratio")]
    columns = {name: np.array([np.nan if row[name] is None else row[name] for row in history]) for name in names}
    return {
        name: {"first": float(column[0]), "mean": float(np.nanmean(column)) if (column == column).any() else np.nan}
        for name, column in columns.items()
    }


def _sentences(metrics: Mapping[str, Any], given: Path | None) -> list[str]:
    found = f"found on {metrics['n_train']:,} training images" if given is None else f"as {given} gives them,"
    said = [f"D: {metrics['discriminative']} features, {found} at epsilon {metrics['epsilon']:g}."]
    change = metrics["change"].get("accuracy")
    if change is None:
        said.append("Without labels no probe was fitted, so whether this is a better encoder was not tested.")
    else:
        before, after = metrics["before"]["accuracy"], metrics["after"]["accuracy"]
        relative = change["relative"]
        said.append(
            f"The linear probe's accuracy on {metrics['n_test']:,} test rows went from {before['value']:.1%} to "
            f"{after['value']:.1%}: {100 * change['value']:+.2f} points (95 % interval {100 * change['low']:+.2f} to "
            f"{100 * change['high']:+.2f}), {relative['value']:+.2%} relative; "
            f"{shown_from(change['minimum_effect'])}."
        )
        said.append(
            "A change may come from fine-tuning alone: --compare sets it against plain training, BatchNorm, Lasso, and "
            "a random D."
        )
    return said
