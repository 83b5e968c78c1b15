"""Feature cards: for each discriminative feature how often it fires, for which images, classes and attributes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from qscore.explain.attributes import LEAST
from qscore.explain.joining import iter_joined
from qscore.images.shapes import ATTRIBUTES
from qscore.metrics import Covariance

__all__ = ["Activity", "correlations", "feature_cards", "read_activity"]

TOP = 8  # images of a card
CLASSES = 3
CORRELATED = 3


@dataclass(frozen=True)
class Activity:
    """Which features are highly active in which rows."""

    deviation: sparse.csr_matrix
    """(n, r): ``|h_ij - mu_i|`` where j is in L_i, no entry elsewhere."""
    discriminative: Int[np.ndarray, " k"]
    """D, ascending."""

    @property
    def q_share(self) -> Float[np.ndarray, " k"]:
        """What part of the sum of Q over all rows comes from each feature of D; they add up to 1, or all are 0."""
        inside = self.deviation[:, self.discriminative].tocsr()
        sizes = np.diff(inside.indptr)
        weights = np.divide(1.0, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
        given = np.asarray(inside.T @ weights).ravel()
        total = given.sum()
        return given / total if total > 0 else given

    def strongest(self, row: int, most: int) -> list[tuple[int, float]]:
        """Return the features in L_i ∩ D of a row and their deviations, the largest first."""
        entry = self.deviation[[row]]
        inside = np.isin(entry.indices, self.discriminative)
        features, values = entry.indices[inside], entry.data[inside]
        order = np.argsort(-values, stable=True)[:most]
        return [(int(features[k]), float(values[k])) for k in order]

    def top(self, feature: int, most: int) -> list[tuple[int, float]]:
        """Return the rows in which a feature is highly active and its deviations, the largest first."""
        entry = self.deviation[:, [feature]].tocoo()
        by_row = np.argsort(entry.row, stable=True)
        order = by_row[np.argsort(-entry.data[by_row], stable=True)][:most]
        return [(int(entry.row[k]), float(entry.data[k])) for k in order]


def read_activity(rows: pa.Table, features: pa.Table) -> Activity:
    """Return the sets L_i of a score table's rows, and D of its feature table."""
    active, deviation = (rows.column(name).combine_chunks() for name in ("active", "deviation"))
    lengths = pc.list_value_length(active).fill_null(0).to_numpy(zero_copy_only=False)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = active.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    data = deviation.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(rows.num_rows, features.num_rows))
    matrix.sort_indices()
    chosen = features.column("discriminative").to_numpy(zero_copy_only=False).astype(bool)
    return Activity(matrix, np.sort(features.column("feature").to_numpy()[chosen]).astype(np.int64))


def correlations(
    embeddings: str | Path, rows: pa.Table, discriminative: Int[np.ndarray, " k"], n_features: int
) -> Float[np.ndarray, "k r"]:
    """Return Pearson's correlation of each feature of D with every feature, over the rows; NaN where one is constant.

    Parameters
    ----------
    embeddings : str or Path
        The embedding table, which is read once; memory grows with the features alone.
    rows : pyarrow.Table
        Of the score table, valid ones.
    discriminative : ndarray of int, shape (k,)
        D.
    n_features : int
        r.
    """
    total = Covariance.empty(n_features)
    for _, H in iter_joined(embeddings, rows, n_features):
        total = total.add(H)
    spread = np.sqrt(np.diag(total.scatter))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Float[np.ndarray, "k r"] = total.scatter[discriminative] / np.outer(spread[discriminative], spread)
    return found


def feature_cards(
    rows: pa.Table,
    features: pa.Table,
    *,
    correlation: Float[np.ndarray, "k r"] | None = None,
    attributes: Mapping[str, Int[np.ndarray, " n"]] | None = None,
) -> pa.Table:
    """Describe every discriminative feature, those first that give most of Q.

    Parameters
    ----------
    rows : pyarrow.Table
        Valid rows of a score table; ``label`` and ``correct``, nulls allowed, add what classes a feature selects and
        how often its rows are correct.
    features : pyarrow.Table
        The feature table.
    correlation : ndarray of shape (k, r), optional
        As `correlations` returns it.
    attributes : mapping of str to ndarray of int, shape (n,), optional
        Of drawn shapes, as positions in ``ATTRIBUTES``.

    Returns
    -------
    pyarrow.Table
        ``feature``, ``rank``, ``count``, ``activation_rate`` of the feature table; ``n_active``, the rows here in which
        it is highly active; ``q_share``, its part in the sum of Q over the rows; ``mean_deviation`` over its rows;
        ``top_ids`` and ``top_deviations``, up to 8 rows.
        With labels: ``classes``, up to 3 that most of its rows are of, as strings; ``class_shares``, of its labelled
        rows; ``base_rate``, the first class's share of all labelled rows; ``lift``, the one over the other.
        With outcomes: ``correct_share`` of its rows, ``correct_base`` of all rows.
        With correlations: ``correlated``, the 3 features with the largest ``|r|``, and ``correlation``.
        With attributes: ``attribute`` with the largest ``adjusted_information``, the adjusted mutual information of
        scikit-learn (``average_method="min"``) with its high activation, in rows of which at least 10 are its and 10
        are not; ``attribute_value`` whose share among its rows exceeds that among all rows by most.
    """
    activity = read_activity(rows, features)
    chosen = activity.discriminative
    active = activity.deviation.astype(bool).tocsc()[:, chosen]
    n_active = np.diff(active.indptr)
    sums = np.asarray(activity.deviation[:, chosen].sum(0)).ravel()
    ids = rows.column("id").to_pylist()
    top = [activity.top(int(j), TOP) for j in chosen]
    of = features.take(pa.array(np.argsort(features.column("feature").to_numpy(), stable=True)[chosen]))
    columns: dict[str, Any] = {name: of.column(name) for name in ("feature", "rank", "count", "activation_rate")}
    columns |= {
        "n_active": pa.array(n_active, pa.int64()),
        "q_share": pa.array(activity.q_share),
        "mean_deviation": _ratio(sums, n_active),
        "top_ids": pa.array([[ids[i] for i, _ in found] for found in top], pa.list_(pa.string())),
        "top_deviations": pa.array([[value for _, value in found] for found in top], pa.list_(pa.float32())),
    }
    if "label" in rows.column_names and rows.column("label").null_count < rows.num_rows:
        columns |= _classes(active, rows.column("label"))
    if "correct" in rows.column_names and rows.column("correct").null_count < rows.num_rows:
        columns |= _outcomes(active, rows.column("correct"))
    if correlation is not None:
        columns |= _correlated(chosen, correlation)
    if attributes is not None:
        columns |= _attributes(active, attributes)
    table = pa.table(columns)
    return table.take(pa.array(np.argsort(-table.column("q_share").to_numpy(), stable=True)))


def _classes(active: sparse.csc_matrix, labels: pa.ChunkedArray) -> dict[str, pa.Array]:
    """Return the classes that each feature's labelled rows are of."""
    known = np.flatnonzero(labels.is_valid().to_numpy(zero_copy_only=False))
    names, codes = np.unique(labels.cast(pa.string()).take(pa.array(known)).to_numpy(), return_inverse=True)
    base = np.bincount(codes, minlength=len(names)) / len(known)
    counts = (_one_hot(codes, len(names)).T @ active[known].astype(np.int64)).tocsc()
    found: list[dict[str, Any]] = []
    for k in range(active.shape[1]):
        part = slice(counts.indptr[k], counts.indptr[k + 1])
        classes, rows = counts.indices[part], counts.data[part]
        order = np.lexsort((classes, -rows))[:CLASSES]
        shares = rows[order] / rows.sum() if len(rows) else np.empty(0)
        first = base[classes[order[0]]] if len(order) else None
        found.append(
            {
                "classes": [str(names[c]) for c in classes[order]],
                "class_shares": shares.tolist(),
                "base_rate": first,
                "lift": float(shares[0] / first) if first is not None else None,
            }
        )
    kinds = {"classes": pa.list_(pa.string()), "class_shares": pa.list_(pa.float64())}
    kinds |= {"base_rate": pa.float64(), "lift": pa.float64()}
    return {name: pa.array([row[name] for row in found], kind) for name, kind in kinds.items()}


def _outcomes(active: sparse.csc_matrix, correct: pa.ChunkedArray) -> dict[str, pa.Array]:
    known = np.flatnonzero(correct.is_valid().to_numpy(zero_copy_only=False))
    right = correct.take(pa.array(known)).to_numpy(zero_copy_only=False).astype(np.float64)
    among = active[known].astype(np.float64)
    base = pa.array(np.full(active.shape[1], right.mean()))
    return {"correct_share": _ratio(among.T @ right, np.asarray(among.sum(0)).ravel()), "correct_base": base}


def _correlated(chosen: Int[np.ndarray, " k"], correlation: Float[np.ndarray, "k r"]) -> dict[str, pa.Array]:
    strength = np.abs(correlation)
    strength[np.arange(len(chosen)), chosen] = np.nan
    lists, values = [], []
    for k, row in enumerate(strength):
        order = [int(j) for j in np.argsort(-row, stable=True)[:CORRELATED] if np.isfinite(row[j])]  # NaN comes last
        lists.append(order)
        values.append([float(correlation[k, j]) for j in order])
    return {
        "correlated": pa.array(lists, pa.list_(pa.int32())),
        "correlation": pa.array(values, pa.list_(pa.float64())),
    }


def _attributes(active: sparse.csc_matrix, attributes: Mapping[str, Int[np.ndarray, " n"]]) -> dict[str, pa.Array]:
    n, k = active.shape
    n_active = np.diff(active.indptr)
    best: list[tuple[float | None, str | None, str | None]] = [(None, None, None)] * k
    for name, codes in attributes.items():
        width = len(ATTRIBUTES[name])
        on = np.asarray((_one_hot(codes, width).T @ active.astype(np.int64)).todense())  # (width, k)
        all_rows = np.bincount(codes, minlength=width)
        there = all_rows > 0
        for feature in np.flatnonzero((n_active >= LEAST) & (n - n_active >= LEAST)):
            table = np.stack([on[there, feature], (all_rows - on[:, feature])[there]])
            told, most = _adjusted_information(table), best[feature][0]
            if most is None or told > most:
                excess = on[:, feature] / n_active[feature] - all_rows / n
                best[feature] = (told, name, ATTRIBUTES[name][int(np.argmax(excess))])
    return {
        "attribute": pa.array([name for _, name, _ in best], pa.string()),
        "adjusted_information": pa.array([told for told, _, _ in best], pa.float64()),
        "attribute_value": pa.array([value for _, _, value in best], pa.string()),
    }


def _adjusted_information(table: Int[np.ndarray, "2 values"]) -> float:
    """Return the adjusted mutual information of rows and columns of a table of counts; 0 where columns are one."""
    if table.shape[1] < 2:
        return 0.0
    expected = expected_mutual_information(sparse.csr_matrix(table), int(table.sum()))
    least = min(float(entropy(table.sum(axis))) for axis in (0, 1))
    shared = float(mutual_info_score(None, None, contingency=table))
    return (shared - expected) / (least - expected) if least - expected > 1e-12 else 0.0


def _one_hot(codes: Int[np.ndarray, " n"], width: int) -> sparse.csr_matrix:
    n = len(codes)
    return sparse.csr_matrix((np.ones(n, dtype=np.int64), codes, np.arange(n + 1)), shape=(n, width))


def _ratio(over: Float[np.ndarray, " k"], under: Bool[np.ndarray, " k"] | Any) -> pa.Array:
    """Return quotients, null where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return pa.array(np.asarray(over) / np.asarray(under), from_pandas=True)
