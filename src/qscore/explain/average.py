"""The paper's picture of average representations: classes by discriminative features, correct beside misclassified."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image
from sklearn.cluster import KMeans

from qscore._validate import QScoreError
from qscore.explain.joining import iter_joined
from qscore.explain.sheets import draw_matrix

__all__ = [
    "Average",
    "Groups",
    "average_representations",
    "average_table",
    "class_groups",
    "draw_average",
    "find_clusters",
]

MOST_GROUPS = 100  # drawn: the first and the last half
CLUSTERS = 10
CLUSTER_ROWS = 10_000  # that clusters are found on
CLIPPED = 99.5  # percentile that has the lightest colour: a few large means would darken all others


@dataclass(frozen=True)
class Groups:
    """Groups of rows, in the order in which they are drawn."""

    kind: str
    """``"classes"`` or ``"clusters"``."""
    names: list[str]
    codes: Int[np.ndarray, " n"]
    """The group of each row; -1 for rows of none."""
    left_out: int = 0
    """Groups that are not drawn, being too many."""

    @property
    def count(self) -> str:
        """How many there are, in words."""
        one = {"classes": "class", "clusters": "cluster"}[self.kind]
        return f"1 {one}" if len(self.names) == 1 else f"{len(self.names)} {self.kind}"


@dataclass(frozen=True)
class Average:
    """Mean representations of groups, over rows of each outcome."""

    groups: Groups
    features: Int[np.ndarray, " k"]
    """D, in blocks: by the group in which a feature's mean is highest, there by how far it exceeds its mean over
    groups."""
    outcomes: list[str]
    """``["correct", "misclassified"]``, or ``["all rows"]`` where outcomes are unknown."""
    means: Float[np.ndarray, "o g k"]
    """Mean h; NaN where a group has no such row."""
    counts: Int[np.ndarray, "o g"]
    """Rows behind each."""
    q: Float[np.ndarray, " g"]
    """Mean Q of each group's rows."""


def class_groups(rows: pa.Table) -> Groups | None:
    """Return the classes, those of highest accuracy first (of highest mean Q where outcomes are unknown); None without.

    Of more than 100 classes the first and the last 50 are kept.
    """
    if "label" not in rows.column_names or rows.column("label").null_count == rows.num_rows:
        return None
    labels = rows.column("label").cast(pa.string()).to_numpy(zero_copy_only=False)
    known = np.array([label is not None for label in labels])
    names, inverse = np.unique(labels[known].astype(str), return_inverse=True)
    codes = np.full(rows.num_rows, -1, dtype=np.int64)
    codes[known] = inverse
    found = _outcome(rows, known)
    value, there = found if found is not None else (_q(rows), np.ones(rows.num_rows, bool))
    return _ordered("classes", names.tolist(), codes, value, there)


def find_clusters(
    embeddings: str | Path, rows: pa.Table, discriminative: Int[np.ndarray, " k"], n_features: int, seed: int
) -> Groups:
    """Group rows without labels: k-means of scikit-learn on the features of D, highest mean Q first.

    Ten clusters, or as many as there are rows, are found on up to 10,000 rows drawn at random; every row then belongs
    to the nearest.
    """
    n = rows.num_rows
    drawn = np.zeros(n, dtype=bool)
    drawn[np.random.default_rng(seed).choice(n, min(n, CLUSTER_ROWS), replace=False)] = True
    order, parts = [], []
    for at, H in iter_joined(embeddings, rows, n_features):
        inside = drawn[at]
        order.append(at[inside])
        parts.append(np.asarray(H[inside][:, discriminative], dtype=np.float64))
    sample = np.concatenate(parts)[np.argsort(np.concatenate(order))]  # whatever the order of the table
    k = min(CLUSTERS, len(np.unique(sample, axis=0)))
    fitted = KMeans(k, n_init=3, random_state=seed).fit(sample)
    codes = np.full(n, -1, dtype=np.int64)
    for at, H in iter_joined(embeddings, rows, n_features):
        codes[at] = fitted.predict(np.ascontiguousarray(H[:, discriminative], dtype=np.float64))
    return _ordered("clusters", None, codes, _q(rows), np.ones(n, dtype=bool))


def average_representations(
    embeddings: str | Path,
    rows: pa.Table,
    groups: Groups,
    discriminative: Int[np.ndarray, " k"],
    n_features: int,
) -> Average:
    """Average the features of D over the rows of each group, correct and misclassified apart.

    Parameters
    ----------
    embeddings : str or Path
        The embedding table, which is read once.
    rows : pyarrow.Table
        Valid rows of the score table; ``correct``, nulls allowed, says the outcomes.
    groups : Groups
        Of the rows.
    discriminative : ndarray of int, shape (k,)
        D.
    n_features : int
        r.

    Returns
    -------
    Average
        The means, in float64. Features are put in order by the means over all rows of a group, whatever the outcome:
        an order by the correct rows alone would favour them.
    """
    outcomes, codes = ["all rows"], np.zeros(rows.num_rows, dtype=np.int64)
    found = _outcome(rows, groups.codes >= 0)
    if found is not None:
        outcomes = ["correct", "misclassified"]
        value, there = found
        codes = np.where(there, np.where(value > 0, 0, 1), -1)
    shape = (len(outcomes), len(groups.names))
    cell = np.where((codes >= 0) & (groups.codes >= 0), codes * shape[1] + groups.codes, -1)
    flat = np.zeros((shape[0] * shape[1], len(discriminative)))
    n_rows = np.zeros(len(flat), dtype=np.int64)
    for at, H in iter_joined(embeddings, rows, n_features):
        inside = cell[at] >= 0
        np.add.at(n_rows, cell[at][inside], 1)
        np.add.at(flat, cell[at][inside], np.asarray(H[inside][:, discriminative], dtype=np.float64))
    sums, counts = flat.reshape(*shape, len(discriminative)), n_rows.reshape(shape)
    with np.errstate(invalid="ignore"):
        means, whole = sums / counts[..., None], sums.sum(0) / counts.sum(0)[:, None]
    order = _blocks(whole)
    within = [groups.codes == g for g in range(shape[1])]
    q = np.array([_q(rows)[rows_of].mean() for rows_of in within])
    return Average(groups, discriminative[order], outcomes, means[..., order], counts, q)


def average_table(found: Average) -> pa.Table:
    """Return the means as a tidy table.

    Returns
    -------
    pyarrow.Table
        ``position`` of the group in the picture, ``group``, ``outcome``, ``n`` rows behind the mean, ``accuracy`` of
        the group (null where outcomes are unknown), ``mean_q`` of the group, ``feature``, ``mean`` (null where n is 0);
        groups and features in the order of the picture.
    """
    o, g, k = found.means.shape
    names = np.array(found.groups.names, dtype=object)
    accuracy = _accuracy(found)
    position = np.broadcast_to(np.arange(g)[None, :, None], (o, g, k)).ravel()
    return pa.table(
        {
            "position": pa.array(position, pa.int32()),
            "group": pa.array(names[position], pa.string()),
            "outcome": pa.array(np.repeat(np.array(found.outcomes, dtype=object), g * k), pa.string()),
            "n": pa.array(np.repeat(found.counts.ravel(), k), pa.int64()),
            "accuracy": pa.array(accuracy[position], from_pandas=True),
            "mean_q": pa.array(found.q[position]),
            "feature": pa.array(np.tile(found.features, o * g), pa.int32()),
            "mean": pa.array(found.means.ravel(), from_pandas=True),
        }
    )


def draw_average(found: Average) -> Image.Image:
    """Draw the means: groups from top to bottom, features from left to right, outcomes side by side on one scale."""
    values = found.means[np.isfinite(found.means)]
    low = min(0.0, float(values.min()))
    high = float(np.percentile(values, CLIPPED))
    accuracy = _accuracy(found)
    by_accuracy = found.groups.kind == "classes" and bool(np.isfinite(accuracy).all())
    labels = [
        f"{name} · {f'{100 * accuracy[g]:.0f} %' if by_accuracy else f'Q {found.q[g]:.3g}'}"
        for g, name in enumerate(found.groups.names)
    ]
    title = f"Average representations: {found.groups.count} by {len(found.features)} discriminative features"
    sort = "accuracy" if by_accuracy else "mean Q"
    notes = [
        f"Colour is the mean of h over a group's rows. {found.groups.kind.capitalize()} with the highest {sort} stand "
        f"at the top; features are in blocks, by the group in which their mean is highest. The {100 - CLIPPED:g} % "
        "largest means share one colour." + (" Grey: no such row." if len(values) < found.means.size else "")
    ]
    if found.groups.left_out:
        notes.append(f"{found.groups.left_out:,} {found.groups.kind} in the middle of the order are left out.")
    panels = [(f"{name}, {int(found.counts[o].sum()):,} rows", found.means[o]) for o, name in enumerate(found.outcomes)]
    return draw_matrix(title, notes, labels, panels, low, high)


def _ordered(
    kind: str,
    names: Sequence[str] | None,
    codes: Int[np.ndarray, " n"],
    value: Float[np.ndarray, " n"],
    known: Shaped[np.ndarray, " n"],
) -> Groups:
    """Put groups in order of the mean of a value, highest first, and leave out what is too much to draw."""
    n_groups = int(codes.max()) + 1
    use = known & (codes >= 0)
    total = np.bincount(codes[use], value[use], n_groups)
    rows = np.bincount(codes[use], minlength=n_groups)
    mean = np.divide(total, rows, out=np.full(n_groups, -np.inf), where=rows > 0)
    order = np.argsort(-mean, stable=True)
    left_out = max(0, n_groups - MOST_GROUPS)
    if left_out:
        order = np.concatenate([order[: MOST_GROUPS // 2], order[-(MOST_GROUPS // 2) :]])
    place = np.full(n_groups + 1, -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    found = [f"cluster {k + 1}" for k in range(len(order))] if names is None else [names[g] for g in order]
    return Groups(kind, found, place[codes], left_out)


def _blocks(means: Float[np.ndarray, "g k"]) -> Int[np.ndarray, " k"]:
    """Order features by the group in which they are highest, and there by how far they stand out."""
    filled = np.where(np.isfinite(means), means, -np.inf)
    home = filled.argmax(0)
    with np.errstate(invalid="ignore"):
        excess = filled.max(0) - np.nanmean(np.where(np.isfinite(means), means, np.nan), axis=0)
    return np.lexsort((-excess, home))


def _accuracy(found: Average) -> Float[np.ndarray, " g"]:
    if len(found.outcomes) == 1:
        return np.full(len(found.groups.names), np.nan)
    total = found.counts.sum(0)
    share: Float[np.ndarray, " g"] = np.divide(found.counts[0], total, out=np.full(len(total), np.nan), where=total > 0)
    return share


def _outcome(
    rows: pa.Table, grouped: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
    """Return 1 for correct rows and 0 for others, and which are known; None if that of no row in a group is."""
    if "correct" not in rows.column_names:
        return None
    column = rows.column("correct")
    known = column.is_valid().to_numpy(zero_copy_only=False)
    if not (known & grouped).any():
        return None
    return column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.float64), known


def _q(rows: pa.Table) -> Float[np.ndarray, " n"]:
    q: Float[np.ndarray, " n"] = rows.column("q_score").to_numpy(zero_copy_only=False).astype(np.float64)
    if not np.isfinite(q).all():
        raise QScoreError("rows: expected valid rows of a score table, got some without a score")
    return q
