"""What a few labels would buy: some of the rows are taken for labelled, and the others say what came of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from qscore.evaluate.calibration import calibrate, reliability
from qscore.evaluate.scores import SCORES
from qscore.evaluate.threshold import choose_threshold

__all__ = ["few_labels"]

SHOWN = ("q_score", "softmax")
LEAST = 10
DELTA = 0.1


def few_labels(
    values: Mapping[str, Float[np.ndarray, " n"]],
    correct: Bool[np.ndarray, " n"],
    *,
    labelled: int,
    error_rate: float | None = None,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Calibrate Q, and the probe's softmax, on a few rows drawn at random, and test both on the others.

    Parameters
    ----------
    values : mapping
        Name -> score of every row; others than Q and softmax are not looked at.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    labelled : int
        Rows drawn, half of all at most.
    error_rate : float, optional
        Wanted among accepted rows, in (0, 1); by default half of the error rate of all rows.
    seed : int, default=0
        Seed of the draw, at least 0.

    Returns
    -------
    dict or None
        ``labelled``, ``wanted``, ``delta``, and for each score what
        :func:`~qscore.evaluate.calibration.calibrate` and :func:`~qscore.evaluate.threshold.choose_threshold` found,
        with ``bins`` (reliability), ``observed_error`` and ``coverage`` among the ``n_rest`` rows whose outcome they
        had not seen. None where all rows are correct, all are wrong, or there are fewer than 20.
    """
    n = len(correct)
    k = min(labelled, n // 2)
    if k < LEAST or correct.all() or not correct.any():
        return None
    wanted = float((~correct).mean()) / 2 if error_rate is None else error_rate
    order = np.random.default_rng([seed, 3]).permutation(n)
    drawn, rest = order[:k], order[k:]
    titles = {score.name: score.title for score in SCORES}
    found = {
        name: {"title": titles[name], **_one(values[name], correct, drawn, rest, wanted, seed)}
        for name in SHOWN
        if name in values
    }
    return {"labelled": k, "wanted": wanted, "delta": DELTA, "scores": found}


def _one(
    score: np.ndarray, correct: np.ndarray, drawn: np.ndarray, rest: np.ndarray, wanted: float, seed: int
) -> dict[str, Any]:
    fitted = calibrate(score[drawn], correct[drawn], seed=seed)
    chosen = choose_threshold(score[drawn], correct[drawn], score[rest], wanted, delta=DELTA)
    accepted = chosen.accept(score[rest])
    wrong = ~correct[rest]
    predicted = fitted.probability(score[rest])
    bins = [
        {"n": row.n, "predicted": row.predicted, "observed": row.observed, "low": row.low, "high": row.high}
        for row in reliability(predicted, wrong)
    ]
    return {
        "bins": bins,
        "n_rest": len(rest),
        "brier": float(((predicted - wrong) ** 2).mean()),
        "brier_base": float(np.square((~correct[drawn]).mean() - wrong).mean()),
        "ece": sum(row["n"] * abs(row["predicted"] - row["observed"]) for row in bins) / len(rest),
        "threshold": chosen.threshold,
        "coverage": float(accepted.mean()),
        "n_accepted": int(accepted.sum()),
        "observed_error": float(wrong[accepted].mean()) if accepted.any() else None,
        "sentence": chosen.sentence,
    }
