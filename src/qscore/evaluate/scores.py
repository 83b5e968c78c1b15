"""Q, its ablations and its rivals: each a score whose sign is fixed here, beforehand, with the reason.

Every score is oriented so that higher should mean "more likely classified correctly". None but the last sees labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Integer

from qscore._validate import QScoreError
from qscore.evaluate import rivals

__all__ = ["RANDOM_DRAWS", "SCORES", "Evidence", "Score", "compute_scores"]

NEIGHBORS = 20  # whose similarity is taken
SHARED_NEIGHBORS = 50  # that an image and its views may have in common
RANDOM_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a score may look at, for the n rows under test. All embeddings are finite."""

    rows: pa.Table
    """Their rows of the score table."""
    embedding: Float[np.ndarray, "n r"]
    """Their embeddings."""
    train: Float[np.ndarray, "m r"]
    """The training rows' embeddings, or the rows under test themselves."""
    confidence: Float[np.ndarray, " n"] | None = None
    """The probe's maximum softmax probability. None where there is no probe."""
    features: pa.Table | None = None
    """The feature table: A, D, and the scaling of signed rows."""
    views: Float[np.ndarray, "n k r"] | None = None
    """Embeddings of k augmented views of each row's image."""
    seed: int = 0
    """Of prototypes, random sets of features, and samples of very many training rows."""
    train_is_test: bool = False
    """Whether ``train`` are the rows under test, in their order: a row is then never its own neighbour."""
    views_missing: str = "no augmented views were given"
    """Why there are no views, where there are none."""

    def column(self, name: str) -> np.ndarray:
        """Return a column of the score table in float64."""
        return np.asarray(self.rows.column(name).to_numpy(), dtype=np.float64)

    @cached_property
    def active(self) -> tuple[Integer[np.ndarray, " n_plus_1"], Integer[np.ndarray, " e"], Float[np.ndarray, " e"]]:
        """L of all rows: where each starts, features, and their deviations."""
        active, deviation = (self.rows.column(name).combine_chunks() for name in ("active", "deviation"))
        indptr = active.offsets.to_numpy()
        values = deviation.flatten().to_numpy().astype(np.float64)
        return indptr - indptr[0], active.flatten().to_numpy(), values

    @cached_property
    def neighbors(self) -> tuple[Float[np.ndarray, "n k"], Integer[np.ndarray, "n k"]]:
        """Cosine similarity to the nearest training rows, falling, and which they are."""
        return rivals.nearest_rows(self.embedding, self.train, SHARED_NEIGHBORS, own=self.train_is_test)

    @cached_property
    def prototype_distances(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Distances to the nearest prototype of the training rows and to the second nearest."""
        return rivals.prototype_distances(self.embedding, rivals.prototypes(self.train, self.seed))

    def require_views(self) -> Float[np.ndarray, "n k r"]:
        """Return the views, or say that and why there are none."""
        if self.views is None:
            raise QScoreError(self.views_missing)
        return self.views

    def require_features(self) -> pa.Table:
        """Return the feature table, or say that there is none."""
        if self.features is None:
            raise QScoreError("no feature table was given")
        return self.features


@dataclass(frozen=True)
class Score:
    """A score, and why its sign is what it is."""

    name: str
    title: str
    reason: str
    """Why rows that score high should be classified correctly."""
    measure: Callable[[Evidence], np.ndarray]
    """The quantity as it is usually defined, (n,) or (n, draws)."""
    sign: Literal[1, -1] = 1
    """-1 where a low quantity makes a high score."""
    kind: Literal["q", "ablation", "rival", "bound"] = "rival"
    """``q`` itself; an ``ablation`` is Q without one of its parts; a ``rival`` knows nothing of Q; the ``bound`` is
    what labels buy."""

    @property
    def needs_labels(self) -> bool:
        """Whether labels go into it."""
        return self.kind == "bound"

    def compute(self, evidence: Evidence) -> np.ndarray:
        """Return the score of each row, higher for "more likely correct".

        Raises
        ------
        QScoreError
            If something that it needs is missing, in words that may follow "because".
        """
        return self.sign * self.measure(evidence)


def compute_scores(evidence: Evidence) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Compute all scores that the evidence allows.

    Parameters
    ----------
    evidence : Evidence
        Of n rows.

    Returns
    -------
    values : dict of str to ndarray
        Name -> scores of shape (n,), of random draws (n, 20), in the order of ``SCORES``. They are rounded to float32,
        as the evaluation table holds them: rows that differ by rounding alone are ties. All are finite; a constant
        score is one too.
    left_out : dict of str to str
        Name -> why the score could not be computed.

    Raises
    ------
    QScoreError
        If numbers of rows or features do not match.
    """
    _check(evidence)
    values: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for score in SCORES:
        try:
            with np.errstate(over="ignore"):
                found = score.compute(evidence).astype(np.float32)
        except QScoreError as error:
            left_out[score.name] = str(error)
            continue
        n_bad = int((~np.isfinite(found)).reshape(len(found), -1).any(axis=1).sum())
        if n_bad:
            left_out[score.name] = f"it is not finite for {n_bad:,} of {len(found):,} rows"
        else:
            values[score.name] = found.astype(np.float64)
    return values, left_out


def _check(evidence: Evidence) -> None:
    n, r = evidence.embedding.shape
    sizes = {"rows": evidence.rows.num_rows}
    if evidence.confidence is not None:
        sizes["confidence"] = len(evidence.confidence)
    if evidence.views is not None:
        sizes["views"] = len(evidence.views)
    if evidence.train_is_test:
        sizes["train"] = len(evidence.train)
    widths = {"train": evidence.train.shape[1]}
    if evidence.views is not None:
        widths["views"] = evidence.views.shape[2]
    if evidence.features is not None:
        widths["features"] = evidence.features.num_rows
    for what, wanted, found in (("rows", n, sizes), ("features", r, widths)):
        for name, size in found.items():
            if size != wanted:
                raise QScoreError(f"{name}: expected {wanted} {what} as in embedding, got {size}")


def _q_without_d(evidence: Evidence) -> np.ndarray:
    """Return the mean deviation over all of L_i, whatever D is."""
    return rivals.mean_deviation(*evidence.active, np.ones(evidence.embedding.shape[1], dtype=bool))


def _q_random_d(evidence: Evidence) -> np.ndarray:
    """Return Q for each of 20 random sets of the size of D, (n, 20)."""
    features = evidence.require_features()
    size = int(features.column("discriminative").to_numpy().sum())
    counts = features.column("count").to_numpy()
    drawn = rivals.draw_features(counts, size, RANDOM_DRAWS, evidence.seed)
    chosen = np.zeros((RANDOM_DRAWS, len(counts)), dtype=bool)
    np.put_along_axis(chosen, drawn, True, axis=1)
    return np.column_stack([rivals.mean_deviation(*evidence.active, mask) for mask in chosen])


def _q_per_sigma(evidence: Evidence) -> np.ndarray:
    """Return Q in standard deviations of its row, of the scaled row where rows are signed; 0 for a constant row."""
    q, sigma = evidence.column("q_score"), evidence.column("std")
    if evidence.features is not None and "center" in evidence.features.column_names:
        scaling = (evidence.features.column(name).to_numpy() for name in ("center", "scale"))
        sigma = rivals.scaled_std(evidence.embedding, *scaling)
    ratio: np.ndarray = np.divide(q, sigma, out=np.zeros_like(q), where=sigma > 0)
    return ratio


def _q1(evidence: Evidence) -> np.ndarray:
    """Return v1's Q1 from the scan's numbers: Z / ||h||_1 with h scaled to unit L2 norm."""
    std, l1 = evidence.column("std"), evidence.column("l1_norm")
    peak = evidence.column("max") - evidence.column("mean")
    z = np.divide(peak, std, out=np.zeros_like(peak), where=std > 0)
    q1: np.ndarray = np.divide(z * evidence.column("l2_norm"), l1, out=np.zeros_like(z), where=l1 > 0)
    return q1


def _neighbor_similarity(evidence: Evidence) -> np.ndarray:
    """Return the mean cosine similarity to the 20 nearest training rows."""
    return np.asarray(evidence.neighbors[0][:, :NEIGHBORS].mean(axis=1))


def _neighborhood_consistency(evidence: Evidence) -> np.ndarray:
    """Return the share of an image's 50 nearest training rows that are its views' too, mean over views."""
    views = evidence.require_views()
    own = evidence.neighbors[1]
    shared = [
        rivals.shared_neighbors(
            own, rivals.nearest_rows(views[:, k], evidence.train, SHARED_NEIGHBORS, own=evidence.train_is_test)[1]
        )
        for k in range(views.shape[1])
    ]
    return np.asarray(np.mean(shared, axis=0))


def _confidence(evidence: Evidence) -> np.ndarray:
    if evidence.confidence is None:
        raise QScoreError("no probe was fitted")
    return evidence.confidence.astype(np.float64)


SCORES = (
    Score("q_score", "Q", "strong evidence in class-specific features", lambda e: e.column("q_score"), kind="q"),
    Score("q_without_d", "Q without D", "Q over all highly activating features", _q_without_d, kind="ablation"),
    Score("q_random_d", "Q with a random D", "Q over as many features, drawn at random", _q_random_d, kind="ablation"),
    Score("q_per_sigma", "Q / sigma", "Q that does not grow with the scale of its row", _q_per_sigma, kind="ablation"),
    Score("q1", "Q1 (v1)", "the score of the paper's first version", _q1),
    Score("l2_norm", "feature norm", "confident inputs have long features", lambda e: e.column("l2_norm")),
    Score("max_activation", "max activation", "a feature found what it looks for", lambda e: e.column("max")),
    Score("hoyer", "Hoyer sparsity", "few features carry a clear representation", lambda e: rivals.hoyer(e.embedding)),
    Score("kurtosis", "kurtosis", "a clear representation peaks", lambda e: rivals.kurtosis(e.embedding)),
    Score("knn_similarity", "kNN similarity", "rows in dense regions resemble what was learned", _neighbor_similarity),
    Score(
        "prototype_distance",
        "prototype distance",
        "rows near the centre of a cluster are typical of it",
        lambda e: e.prototype_distances[0],
        sign=-1,
    ),
    Score(
        "prototype_margin",
        "prototype margin",
        "rows between two clusters are ambiguous",
        lambda e: e.prototype_distances[1] - e.prototype_distances[0],
    ),
    Score(
        "mahalanobis",
        "Mahalanobis distance",
        "rows far from all that was learned are strange to the encoder",
        lambda e: rivals.mahalanobis(e.embedding, e.train, e.seed),
        sign=-1,
    ),
    Score(
        "augmentation_cosine",
        "augmentation cosine",
        "what was understood stays where it is under augmentation",
        lambda e: rivals.view_cosine(e.embedding, e.require_views()),
    ),
    Score(
        "neighborhood_consistency",
        "neighbourhood consistency",
        "what was understood keeps its neighbours under augmentation",
        _neighborhood_consistency,
    ),
    Score(
        "softmax",
        "probe's softmax",
        "the bound that labels buy: the probe's own confidence",
        _confidence,
        kind="bound",
    ),
)
