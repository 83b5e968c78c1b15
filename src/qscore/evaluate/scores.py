"""Q, its ablation and its rivals: each a score whose sign is fixed here, beforehand, with the reason.

Every score is oriented so that higher should mean "more likely classified correctly". None but the last sees labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from sklearn.neighbors import NearestNeighbors

__all__ = ["SCORES", "Evidence", "Score"]

NEIGHBORS = 20


@dataclass(frozen=True)
class Evidence:
    """What a score may look at, for the rows under test."""

    rows: pa.Table
    """Their rows of the score table."""
    embedding: Float[np.ndarray, "n r"]
    """Their embeddings."""
    train: Float[np.ndarray, "m r"]
    """The training rows' embeddings."""
    confidence: Float[np.ndarray, " n"]
    """The probe's maximum softmax probability."""

    def column(self, name: str) -> np.ndarray:
        """Return a column of the score table in float64."""
        return np.asarray(self.rows.column(name).to_numpy(), dtype=np.float64)


@dataclass(frozen=True)
class Score:
    """A score, and why its sign is what it is."""

    name: str
    title: str
    reason: str
    compute: Callable[[Evidence], np.ndarray]
    needs_labels: bool = False


def _q_without_features(evidence: Evidence) -> np.ndarray:
    """Return the mean deviation over all of L_i, whatever D is; 0 where L_i is empty."""
    deviation = evidence.rows.column("deviation").combine_chunks()
    sizes = np.diff(deviation.offsets.to_numpy())
    rows = np.repeat(np.arange(len(sizes)), sizes)
    total = np.bincount(rows, weights=deviation.flatten().to_numpy(), minlength=len(sizes))
    return np.asarray(total / np.maximum(sizes, 1))


def _q1(evidence: Evidence) -> np.ndarray:
    """Return v1's Q1 from the scan's numbers: Z / ||h||_1 with h scaled to unit L2 norm."""
    std, l1 = evidence.column("std"), evidence.column("l1_norm")
    peak = evidence.column("max") - evidence.column("mean")
    z = np.divide(peak, std, out=np.zeros_like(peak), where=std > 0)
    q1: np.ndarray = np.divide(z * evidence.column("l2_norm"), l1, out=np.zeros_like(z), where=l1 > 0)
    return q1


def _hoyer(evidence: Evidence) -> np.ndarray:
    """Return Hoyer's sparsity (sqrt(r) - l1 / l2) / (sqrt(r) - 1), 0 for an all-zero row."""
    root = np.sqrt(evidence.embedding.shape[1])
    l1, l2 = evidence.column("l1_norm"), evidence.column("l2_norm")
    ratio = np.divide(l1, l2, out=np.full_like(l1, root), where=l2 > 0)
    return np.asarray((root - ratio) / (root - 1))


def _neighbor_similarity(evidence: Evidence) -> np.ndarray:
    """Return the mean cosine similarity to the nearest training rows."""
    k = min(NEIGHBORS, len(evidence.train))
    neighbors = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(evidence.train)
    distance, _ = neighbors.kneighbors(evidence.embedding)
    return np.asarray(1.0 - distance.mean(axis=1), dtype=np.float64)


SCORES = (
    Score("q_score", "Q", "strong evidence in class-specific features", lambda e: e.column("q_score")),
    Score("q_without_d", "Q without D", "Q over all highly activating features", _q_without_features),
    Score("q1", "Q1 (v1)", "the score of the paper's first version", _q1),
    Score("l2_norm", "feature norm", "confident inputs have long features", lambda e: e.column("l2_norm")),
    Score("hoyer", "Hoyer sparsity", "few features carry a clear representation", _hoyer),
    Score("knn_similarity", "kNN similarity", "rows in dense regions resemble what was learned", _neighbor_similarity),
    Score(
        "softmax",
        "probe's softmax",
        "the bound that labels buy: the probe's own confidence",
        lambda e: e.confidence.astype(np.float64),
        needs_labels=True,
    ),
)
