"""How far a representation shrinks: a linear classifier's accuracy on a share of the features, beside its controls.

Features are ranked by their activation rate A, without labels, and a share of the ranks is kept (Kalibhat et al.,
AAAI 2024, arXiv 2203.01881). What that choice is worth shows beside features chosen at random, by variance or by A
alone, and beside as many principal components. Every selection of a kind contains the smaller ones, so each kind
costs one factor of one Gram matrix (:mod:`qscore.evaluate.ridge`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from qscore._progress import progress
from qscore._validate import QScoreError, check_keep, check_matrix
from qscore.core import kept_features
from qscore.evaluate.curve import CompressionCurve, CurvePoint, Verdict
from qscore.evaluate.ridge import (
    BATCH,
    Moments,
    Path,
    class_moments,
    correct_along,
    merge_moments,
    ordered_path,
    principal_path,
    ridge_weights,
    row_batches,
)

__all__ = ["KEEPS", "METHODS", "compression_curve", "selection_orders"]

KEEPS = tuple(round(0.05 * k, 2) for k in range(1, 21))
JUDGED = (0.45, 0.6)  # the band of the discriminative features itself, and the paper's "up to 40 % can go"
METHODS = ("rank", "random", "variance", "rate", "pca")
STRENGTHS = tuple(10.0**k for k in range(-6, 2))
VALIDATION_SHARE = 0.2


def compression_curve(
    train: Float[Any, "n r"],
    train_labels: Shaped[np.ndarray, " n"],
    test: Float[Any, "m r"],
    test_labels: Shaped[np.ndarray, " m"],
    rates: Float[np.ndarray, " r"] | Integer[np.ndarray, " r"],
    *,
    keeps: Sequence[float] = KEEPS,
    n_random: int = 20,
    resamples: int = 2000,
    seed: int = 0,
) -> CompressionCurve:
    """Measure a linear classifier's accuracy on growing shares of the features, chosen in five ways.

    The classifier is ridge regression on one-hot targets, with an intercept, in closed form; features are centred and
    not scaled. Its penalty is chosen once, with all features, on a fifth of each class's training rows held out, and
    is the same for every selection. Random subsets are the beginnings of ``n_random`` shuffles of the features. The
    claim "the rest of the features can go" holds at a share where the 95 % lower bound of the paired change in accuracy
    lies above -1 point, and the accuracy above the 95th percentile of random subsets of equal size.

    Parameters
    ----------
    train, test : array or memory map, shapes (n, r) and (m, r)
        Floating-point representations; read a few thousand rows at a time. Rows with NaN or infinity are left out.
    train_labels, test_labels : ndarray, shapes (n,) and (m,)
        Integers or strings.
    rates : ndarray of shape (r,)
        A, or the counts behind it, from the training rows (:func:`qscore.activation_rates`).
    keeps : sequence of float, default=0.05, 0.10, ..., 1.0
        Shares in (0, 1]. 0.45, 0.6 and 1.0 are always added.
    n_random : int, default=20
        Random subsets of each size, at least 1.
    resamples : int, default=2000
        Bootstrap resamples of the test rows, at least 1.
    seed : int, default=0
        Seed of split, subsets and resamples, at least 0.

    Returns
    -------
    CompressionCurve
        Points, verdicts and sentences.

    Raises
    ------
    QScoreError
        If shapes do not fit, there are fewer than two classes, no class has enough rows to hold some out, all features
        are constant, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 4, 600)
    >>> H = rng.gamma(0.2, size=(600, 40)); H[np.arange(600), 20 + labels] += 3
    >>> rates = np.arange(40) / 40
    >>> curve = compression_curve(H[:400], labels[:400], H[400:], labels[400:], rates, keeps=[0.6], n_random=5)
    >>> [(point.keep, point.n_kept) for point in curve.points if point.method == "rank"]
    [(0.45, 18), (0.6, 24), (1.0, 40)]
    """
    _check_arguments(train, test, rates, n_random, resamples, seed)
    for keep in keeps:
        check_keep(keep)
    keeps = sorted({float(keep) for keep in keeps} | {*JUDGED, 1.0})
    _check_labels(train, train_labels, test, test_labels)
    rows, test_rows = _valid_rows(train, "the training rows"), _valid_rows(test, "the test rows")
    classes, codes, test_codes = _codes(train_labels[rows], test_labels[test_rows])
    moments, strength = _fit(train, rows, codes, len(classes), np.random.default_rng([seed, 0]))
    penalty = strength * _mean_variance(moments)
    sizes = [len(kept_features(rates, keep)) for keep in keeps]
    subsets: dict[str, list[Bool[np.ndarray, "k m"]]] = {}
    with progress("compression", n_random + len(METHODS) - 1, "selections") as advance:
        for method, path in _paths(moments, penalty, rates, n_random, seed):
            subsets.setdefault(method, []).append(correct_along(path, test, test_rows, test_codes, sizes))
            advance(1, method)
    rng = np.random.default_rng([seed, 2])
    points = _points(subsets, keeps, sizes, resamples, rng)
    full = float(subsets["rank"][0][-1].mean())
    return CompressionCurve(
        n_train=len(rows),
        n_test=len(test_rows),
        n_features=len(rates),
        n_classes=len(classes),
        n_invalid=len(train) - len(rows) + len(test) - len(test_rows),
        n_unseen=int((test_codes < 0).sum()),
        strength=strength,
        accuracy=full,
        majority=float((test_codes == moments.counts.argmax()).mean()),
        points=points,
        verdicts=tuple(_verdict(points, keep, len(rates), len(test_rows), full, n_random) for keep in JUDGED),
    )


def selection_orders(
    rates: Float[np.ndarray, " r"] | Integer[np.ndarray, " r"], variances: Float[np.ndarray, " r"]
) -> dict[str, Integer[np.ndarray, " r"]]:
    """Return, for each way of choosing features, the order in which a growing share takes them.

    The first ``len(kept_features(rates, keep))`` of the order ``"rank"`` are what :func:`qscore.core.kept_features`
    keeps: from the 95th percentile of A downwards, and then what lies above it.

    Examples
    --------
    >>> import numpy as np
    >>> orders = selection_orders(np.arange(40), np.ones(40))
    >>> {name: order[:4].tolist() for name, order in orders.items()}
    {'rank': [37, 36, 35, 34], 'variance': [0, 1, 2, 3], 'rate': [39, 38, 37, 36]}
    """
    rising = np.argsort(rates, stable=True)
    top = len(rates) - int(np.isin(rising[::-1], kept_features(rates, 0.95)).argmax())  # one past the 95th percentile
    return {
        "rank": np.concatenate([rising[:top][::-1], rising[top:]]),
        "variance": np.argsort(-variances, stable=True),
        "rate": rising[::-1],
    }


def _paths(moments: Moments, penalty: float, rates: np.ndarray, n_random: int, seed: int) -> Iterator[tuple[str, Path]]:
    for method, order in selection_orders(rates, np.diag(moments.gram)).items():
        yield method, ordered_path(moments, order, penalty)
    yield "pca", principal_path(moments, penalty)
    rng = np.random.default_rng([seed, 1])
    for _ in range(n_random):
        yield "random", ordered_path(moments, rng.permutation(len(rates)), penalty)


def _fit(
    H: Any, rows: np.ndarray, codes: np.ndarray, n_classes: int, rng: np.random.Generator
) -> tuple[Moments, float]:
    """Return all rows' moments, and the strength that does best on held-out rows: the largest among equals."""
    held = _held_out(codes, rng)
    fitted = class_moments(row_batches(H, rows[~held], codes[~held]), n_classes)
    moments = merge_moments(fitted, class_moments(row_batches(H, rows[held], codes[held]), n_classes))
    if not _mean_variance(moments) > 0 or not _mean_variance(fitted) > 0:
        raise QScoreError("all features are constant over the training rows; there is nothing to classify by")
    weights = [ridge_weights(fitted, strength * _mean_variance(fitted)) for strength in STRENGTHS]
    right = np.zeros(len(STRENGTHS), dtype=np.int64)
    for X, truth in row_batches(H, rows[held], codes[held]):
        centred = X - fitted.mean
        right += [int(((centred @ W + fitted.shares).argmax(axis=1) == truth).sum()) for W in weights]
    return moments, STRENGTHS[len(STRENGTHS) - 1 - int(right[::-1].argmax())]


def _mean_variance(moments: Moments) -> float:
    """Return the mean over features of the sum of squared deviations: the penalty's unit."""
    return float(np.trace(moments.gram)) / len(moments.mean)


def _held_out(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mark a fifth of each class's rows."""
    shuffled = rng.permutation(len(codes))
    by_class = shuffled[np.argsort(codes[shuffled], stable=True)]
    counts = np.bincount(codes)
    within = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(codes), dtype=bool)
    held[by_class] = within < np.repeat(np.round(VALIDATION_SHARE * counts), counts)
    if not held.any():
        raise QScoreError(
            f"{len(codes)} training rows for {len(counts)} classes are too few to hold a fifth of any class out; "
            "label more rows"
        )
    return held


def _points(
    subsets: dict[str, list[np.ndarray]],
    keeps: Sequence[float],
    sizes: Sequence[int],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[CurvePoint, ...]:
    """Return the points, by method and share; a selection of all features is the full classifier itself."""
    full = subsets["rank"][0][-1]
    points = []
    for method in METHODS:
        for at, (keep, size) in enumerate(zip(keeps, sizes, strict=True)):
            right = np.stack([full if size == sizes[-1] else found[at] for found in subsets[method]])
            accuracy = float(right.mean())
            change = accuracy - float(full.mean())
            if method == "random":
                bounds = np.quantile(right.mean(axis=1), [0.05, 0.95])
                changes = bounds - full.mean()
            else:
                bounds, changes = _bootstrap(right[0], full, resamples, rng)
            low, high, change_low, change_high = (float(bound) for bound in (*bounds, *changes))
            points.append(CurvePoint(keep, size, method, accuracy, low, high, change, change_low, change_high))
    return tuple(points)


def _bootstrap(
    right: np.ndarray, full: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of an accuracy and of its paired change.

    A resampled row is one of four kinds (either classifier right or not), so how many of each are drawn is multinomial:
    the very distribution of resampled rows, without drawing them.
    """
    n = len(right)
    kinds = np.bincount(2 * right.astype(int) + full, minlength=4) / n
    drawn = rng.multinomial(n, kinds, size=resamples) / n  # (resamples, 4): neither, full only, this only, both
    accuracy = np.quantile(drawn[:, 2] + drawn[:, 3], [0.025, 0.975])
    change = np.quantile(drawn[:, 2] - drawn[:, 1], [0.025, 0.975])
    return accuracy, change


def _verdict(
    points: Sequence[CurvePoint], keep: float, n_features: int, n_test: int, full: float, n_random: int
) -> Verdict:
    at = {point.method: point for point in points if point.keep == keep}
    rank, random = at["rank"], at["random"]
    return Verdict(
        keep=keep,
        n_kept=rank.n_kept,
        n_features=n_features,
        n_test=n_test,
        accuracy=rank.accuracy,
        full_accuracy=full,
        change=rank.change,
        change_low=rank.change_low,
        change_high=rank.change_high,
        random_mean=random.accuracy,
        random_high=random.high,
        n_random=n_random,
    )


def _check_arguments(train: Any, test: Any, rates: np.ndarray, n_random: int, resamples: int, seed: int) -> None:
    check_matrix(train, name="train")
    check_matrix(test, name="test")
    r = train.shape[1]
    if test.shape[1] != r or rates.shape != (r,):
        raise QScoreError(
            f"train, test and rates: expected the same features, got {r}, {test.shape[1]} and rates of shape "
            f"{rates.shape}; all three must come from the same encoder"
        )
    if n_random < 1 or resamples < 1 or seed < 0:
        raise QScoreError(
            f"expected n_random >= 1, resamples >= 1 and seed >= 0, got {n_random}, {resamples} and {seed}"
        )


def _check_labels(train: Any, train_labels: np.ndarray, test: Any, test_labels: np.ndarray) -> None:
    for name, H, labels in (("train_labels", train, train_labels), ("test_labels", test, test_labels)):
        if labels.shape != (len(H),) or labels.dtype.kind not in "biuUS":
            raise QScoreError(
                f"{name}: expected {len(H)} integers or strings, one a row, got {labels.dtype} of shape {labels.shape}"
            )
    if (train_labels.dtype.kind in "US") != (test_labels.dtype.kind in "US"):
        raise QScoreError(
            f"labels: those of the training rows are {train_labels.dtype}, those of the test rows {test_labels.dtype}"
        )


def _codes(labels: np.ndarray, test_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the training rows' classes, and every row's place among them; -1 where a test row's class is not there."""
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise QScoreError(f"ridge needs at least two classes, got {len(classes)}: {classes.tolist()}")
    place = np.searchsorted(classes, test_labels).clip(max=len(classes) - 1)
    return classes, codes, np.where(classes[place] == test_labels, place, -1)


def _valid_rows(H: Any, name: str) -> np.ndarray:
    """Return the rows without NaN or infinity."""
    finite = [np.isfinite(np.asarray(H[start : start + BATCH])).all(axis=1) for start in range(0, len(H), BATCH)]
    rows = np.flatnonzero(np.concatenate(finite))
    if not len(rows):
        raise QScoreError(f"{name}: no row is valid, all hold NaN or infinity")
    return rows
