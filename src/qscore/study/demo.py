"""The protocol on one data set and one method: train, embed, score, evaluate, report."""

import logging
from pathlib import Path
from typing import Any

from qscore.embedding import embed
from qscore.evaluate import evaluate_scores
from qscore.images import open_images
from qscore.report import write_report
from qscore.scoring import features_path, score
from qscore.ssl import pretrain
from qscore.study.splits import split_by_label

__all__ = ["demo"]

log = logging.getLogger(__name__)

DIGITS_EPOCHS = 60
# Mirrored digits are other digits, or none; and one channel thrice has no colours to change.
DIGITS_VIEWS = {"augment.flip": 0.0, "augment.saturation": 0.0, "augment.hue": 0.0, "augment.grayscale": 0.0}


def demo(out: str | Path, *, seed: int = 0, overwrite: bool = False) -> tuple[Path, dict[str, Any]]:
    """Run the whole story on scikit-learn's 1,797 handwritten digits: real images, no download, two minutes on 2 cores.

    SimCLR learns from half of the images, without labels. D comes from these; the others are only scored, and
    labels enter at last, to test what Q predicts. The same call again continues or repeats a run.

    Parameters
    ----------
    out : str or Path
        The run directory: encoder, embeddings, scores, metrics and ``report.html``.
    seed : int, default=0
        Of everything random; the same seed gives the same numbers on the same kind of CPU.
    overwrite : bool, default=False
        Replace a run of another seed.

    Returns
    -------
    report : Path
        ``report.html``.
    metrics : dict
        As :func:`qscore.evaluate_scores` returns them.

    Raises
    ------
    QScoreError
        If the directory holds anything but an earlier run of the demo.
    """
    out = Path(out)
    digits = open_images("digits")
    train, test = split_by_label(digits, seed)
    log.info("1/5  SimCLR learns from %s digits, without labels", f"{len(train):,}")
    encoder = pretrain(
        "simclr",
        train,
        out,
        recipe="small",
        epochs=DIGITS_EPOCHS,
        overrides=DIGITS_VIEWS,
        seed=seed,
        overwrite=overwrite,
    )
    log.info("2/5  embedding these, and %s others", f"{len(test):,}")
    embed(train, encoder, out / "train-embeddings", overwrite=overwrite)
    embed(test, encoder, out / "embeddings", overwrite=overwrite)
    log.info("3/5  scoring: epsilon and D from the former, Q of the latter")
    score(out / "train-embeddings", out / "train-scores.parquet", epsilon="auto", overwrite=True)
    fitted = features_path(out / "train-scores.parquet")
    score(out / "embeddings", out / "scores.parquet", features=fitted, overwrite=True)
    log.info("4/5  labels enter: does Q predict the linear probe's mistakes?")
    metrics = evaluate_scores(
        out / "scores.parquet", out / "embeddings", out / "train-embeddings", seed=seed, overwrite=True
    )
    log.info("5/5  the report")
    return write_report(out), metrics
