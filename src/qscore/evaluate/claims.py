"""Claims C1 and C2: correct rows have few, highly deviated features, and D is active mostly in them.

C1 (arXiv 2203.01881, version 1): representations of correctly classified samples have few, highly deviated features,
those of misclassified ones do not. C2 (Kalibhat et al., AAAI 2024): discriminative features sit mostly in correctly
classified samples. Easy classes alone could bring forth both, so all is measured overall and within class, and for C2
beside random sets of features and the most frequent ones. :func:`qscore.evaluate.judgement.judge` holds the rules.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Shaped

from qscore._validate import QScoreError
from qscore.evaluate.effects import STATISTICS, Effects, effects
from qscore.evaluate.judgement import OVERALL, WITHIN, ClaimTable, Measure
from qscore.evaluate.purity import Purity, purity
from qscore.tables import read_record

__all__ = ["claim_table"]

N_RANDOM = 20


def claim_table(
    rows: pa.Table,
    features: pa.Table,
    correct: Bool[np.ndarray, " n"],
    labels: Shaped[np.ndarray, " n"] | None = None,
    *,
    n_random: int = N_RANDOM,
    resamples: int = 2000,
    seed: int = 0,
) -> ClaimTable:
    """Compare the highly active features of correct and wrong rows.

    Of each row: ``|L_i|``, ``Z_i = (max - mean) / std`` (0 for a constant row), the mean deviation of L_i in standard
    deviations of the row, and for D, for random sets of as many features with A > 0 and for as many features of highest
    A: ``|L_i ∩ S|`` and its share of ``|L_i|``. Of each of these sets, how much likelier to be correct the rows are in
    which its features are highly active. Statistics of random sets are means over the sets.

    Parameters
    ----------
    rows : pyarrow.Table of n rows
        Rows of a score table: ``active``, ``deviation``, ``n_discriminative``, ``mean``, ``std``, ``max``, and
        ``valid`` where there is one. Rows that are not valid are left out.
    features : pyarrow.Table of r rows
        The feature table that belongs to it: ``count``, ``discriminative``.
    correct : ndarray of bool, shape (n,)
        Whether each row was classified correctly.
    labels : ndarray of shape (n,), optional
        The rows' true classes, integers or strings, to compare within them.
    n_random : int, default=20
        Random sets, drawn without replacement; at least 1.
    resamples : int, default=2000
        Bootstrap resamples of the rows (within class: of each class's rows), at least 1.
    seed : int, default=0
        Seed of sets and resamples, at least 0.

    Returns
    -------
    ClaimTable
        All numbers with 95 % percentile intervals, the verdicts, and sentences.

    Raises
    ------
    QScoreError
        If lengths differ, the tables do not belong together, or the valid rows are all correct or all wrong.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> rng = np.random.default_rng(0)
    >>> correct = rng.random(400) < 0.7
    >>> active = [[0, 1] if right else [2, 3, 4] for right in correct]
    >>> columns = {"active": active, "deviation": [[1.0] * len(row) for row in active]}
    >>> columns |= {"mean": np.zeros(400), "std": np.ones(400), "max": np.where(correct, 9.0, 6.0)}
    >>> rows = pa.table(columns | {"n_discriminative": np.where(correct, 2, 0)})
    >>> features = pa.table({"count": [280, 280, 120, 120, 120], "discriminative": [True, True, False, False, False]})
    >>> found = claim_table(rows, features, correct, resamples=50)
    >>> [verdict.verdict for verdict in found.verdicts]
    ['holds weakly', 'holds weakly']
    """
    _check(rows, features, correct, labels, n_random, resamples, seed)
    kept = _usable(rows)
    rows, correct = rows.filter(pa.array(kept)), correct[kept]
    if correct.all() or not correct.any():
        outcome = "correct" if len(correct) and correct.all() else "wrong"
        raise QScoreError(f"expected correct and wrong rows to compare, got {len(correct)} valid rows, all {outcome}")
    signed = bool(read_record(rows.schema).get("signed"))
    indptr, active = _lists(rows, "active")
    sets = _sets(features, n_random, seed)
    quantities = _quantities(rows, indptr, active, sets, signed=signed)
    classes = None if labels is None else np.unique(labels[kept], return_inverse=True)[1].reshape(-1)
    measures: list[Measure] = []
    for scope, of in ((OVERALL, None), (WITHIN, classes))[: 1 if classes is None else 2]:
        found = effects(quantities, correct, of, resamples=resamples, seed=seed)
        measures += _effect_measures(found, n_random, scope)
        pure = purity(indptr, active, np.stack(list(sets.values())), correct, of, resamples=resamples, seed=seed)
        measures += _purity_measures(pure, found["n_active"], scope)
    empty = np.diff(indptr) == 0
    return ClaimTable(
        measures=tuple(measures),
        n_correct=int(correct.sum()),
        n_wrong=int((~correct).sum()),
        n_classes=None if classes is None else found["n_active"].n_classes,
        n_all_classes=None if classes is None else int(classes.max()) + 1,
        n_empty_correct=int((empty & correct).sum()),
        n_empty_wrong=int((empty & ~correct).sum()),
        n_invalid=int((~kept).sum()),
        n_discriminative=int(sets["discriminative"].sum()),
        n_random=n_random,
        signed=signed,
    )


def _check(
    rows: pa.Table,
    features: pa.Table,
    correct: np.ndarray,
    labels: np.ndarray | None,
    n_random: int,
    resamples: int,
    seed: int,
) -> None:
    if n_random < 1 or resamples < 1 or seed < 0:
        raise QScoreError(
            f"expected n_random >= 1, resamples >= 1 and seed >= 0, got {n_random}, {resamples} and {seed}"
        )
    for name, column in (("correct", correct), ("labels", labels)):
        if column is not None and column.shape != (rows.num_rows,):
            raise QScoreError(f"{name}: expected one value for each of {rows.num_rows} rows, got shape {column.shape}")
    if correct.dtype != bool:
        raise QScoreError(f"correct: expected booleans, got {correct.dtype}")
    _, active = _lists(rows, "active")
    if active.max(initial=-1) >= features.num_rows:
        raise QScoreError(
            f"feature {active.max()} is highly active in some row, and the feature table has {features.num_rows} "
            "features; it belongs to another score table"
        )


def _usable(rows: pa.Table) -> np.ndarray:
    """Tell which rows are valid, and hold numbers that float32 can."""
    usable = np.ones(rows.num_rows, dtype=bool)
    if "valid" in rows.column_names:
        usable = np.asarray(rows.column("valid").to_numpy(), dtype=bool)
    for name in ("mean", "std", "max"):
        usable = usable & np.isfinite(_column(rows, name))
    return usable


def _sets(features: pa.Table, n_random: int, seed: int) -> dict[str, np.ndarray]:
    """Return D, as many of the most frequent features, and random sets of features with A > 0, as masks of (r,)."""
    counts = features.column("count").to_numpy()
    D = np.asarray(features.column("discriminative").to_numpy(), dtype=bool)
    size, r = int(D.sum()), len(counts)
    ranked = np.argsort(counts, stable=True)
    rng = np.random.default_rng([seed, 1])  # not the resamples' draws
    fires = np.flatnonzero(counts > 0)
    chosen = {"frequent": ranked[r - size :]}
    chosen |= {f"random {k}": rng.choice(fires, size, replace=False) for k in range(n_random)}
    return {"discriminative": D} | {name: np.isin(np.arange(r), some) for name, some in chosen.items()}


def _quantities(
    rows: pa.Table, indptr: np.ndarray, active: np.ndarray, sets: Mapping[str, np.ndarray], *, signed: bool
) -> dict[str, np.ndarray]:
    """Return what is compared, one value per row; NaN where a row has none."""
    n_active = np.diff(indptr)
    of_row = np.repeat(np.arange(rows.num_rows), n_active)
    sigma, peak = _column(rows, "std"), _column(rows, "max") - _column(rows, "mean")
    found: dict[str, np.ndarray] = {"n_active": n_active.astype(np.float64)}
    found["z"] = np.divide(peak, sigma, out=np.zeros_like(peak), where=sigma > 0)
    if not signed:
        _, deviation = _lists(rows, "deviation")
        total = np.bincount(of_row, weights=deviation, minlength=rows.num_rows)
        found["deviation"] = _ratio(total, n_active * sigma)
    for name, members in sets.items():
        within = np.bincount(of_row, weights=members[active], minlength=rows.num_rows)
        found[f"n_{name}"] = within
        found[f"share_{name}"] = _ratio(within, n_active)
    if not np.array_equal(found["n_discriminative"], _column(rows, "n_discriminative")):
        raise QScoreError("n_discriminative: the feature table's D is not the one these rows were scored with")
    return found


def _effect_measures(found: Mapping[str, Effects], n_random: int, scope: str) -> Iterator[Measure]:
    for name in ("n_active", "z", "deviation"):
        if name in found:
            yield from _measures(name, scope, STATISTICS, found[name].drawn, found[name])
    for kind in ("n", "share"):
        behind = found[f"{kind}_discriminative"]
        drawn = {name: found[f"{kind}_{name}"].drawn for name in ("discriminative", "frequent")}
        drawn["random"] = np.mean([found[f"{kind}_random {k}"].drawn for k in range(n_random)], axis=0)
        for name, values in drawn.items():
            yield from _measures(f"{kind}_{name}", scope, STATISTICS, values, behind)
        for name in ("random", "frequent"):
            contrast = drawn["discriminative"] - drawn[name]
            yield from _measures(f"{kind}_discriminative - {kind}_{name}", scope, STATISTICS, contrast, behind)


def _purity_measures(found: Purity, behind: Effects, scope: str) -> Iterator[Measure]:
    excess = {"discriminative": found.excess[:, 0], "frequent": found.excess[:, 1]}
    random = found.excess[:, 2:]
    excess["random"] = random.mean(axis=1)
    for name, values in excess.items():
        if scope == OVERALL:
            yield from _measures(f"purity_{name}", scope, ("purity",), (found.base + values)[:, None], behind)
        yield from _measures(f"purity_{name}", scope, ("excess",), values[:, None], behind)
    highest = np.full((1, 1), np.quantile(random[0], 0.95))
    yield from _measures("purity_random", scope, ("excess_p95",), highest, behind)
    for name in ("random", "frequent"):
        contrast = (excess["discriminative"] - excess[name])[:, None]
        yield from _measures(f"purity_discriminative - purity_{name}", scope, ("excess",), contrast, behind)


def _measures(
    quantity: str, scope: str, statistics: tuple[str, ...], drawn: np.ndarray, behind: Effects
) -> Iterator[Measure]:
    """Give the statistics with percentile intervals; resamples in which one is undefined do not count for it."""
    for statistic, column in zip(statistics, drawn.T, strict=True):
        defined = column[1:][~np.isnan(column[1:])]
        low, high = np.quantile(defined, [0.025, 0.975]).tolist() if len(defined) else (np.nan, np.nan)
        counts = (behind.n_correct, behind.n_wrong, behind.n_classes)
        yield Measure(quantity, scope, statistic, float(column[0]), low, high, *counts)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _column(rows: pa.Table, name: str) -> np.ndarray:
    return np.asarray(rows.column(name).to_numpy(), dtype=np.float64)


def _lists(rows: pa.Table, name: str) -> tuple[np.ndarray, Any]:
    """Return where each row's list starts and ends, and all values, one after another."""
    column = rows.column(name).combine_chunks()
    offsets = column.offsets.to_numpy()
    return offsets - offsets[0], column.flatten().to_numpy()
