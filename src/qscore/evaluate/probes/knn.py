"""Weighted nearest neighbours: each of the k most similar training rows votes for its class.

With s_ij the cosine similarity of test row i to training row j, N_i the k rows of largest s_ij and y_j their classes,

    votes_ic = sum over j in N_i with y_j = c of exp(s_ij / temperature)
    class_i = argmax_c votes_ic,   confidence_i = votes_ic / sum_c votes_ic  of that class

Wu et al.: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4, with
k = 200 and temperature 0.07; so used by DINO (Caron et al., ICCV 2021).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Integer

from qscore._progress import progress
from qscore.evaluate.probes.devices import Placement, place
from qscore.evaluate.probes.rows import TrainingRows

__all__ = ["NEIGHBORS", "TEMPERATURE", "KNNClassifier", "choose_k", "most_similar"]

NEIGHBORS = 200
TEMPERATURE = 0.07
TILE = 4096  # rows by rows of similarities that exist at a time: 64 MiB
TEST_BYTES = 2**29  # of test rows that one pass over the training rows serves


def choose_k(n: int, n_classes: int) -> int:
    """Return how many neighbours vote: 200, or as many as an average class has rows if that is fewer.

    With more, rows of other classes would outnumber those of the right one however good the representation is.

    Examples
    --------
    >>> choose_k(50_000, 10), choose_k(898, 10), choose_k(5, 5)
    (200, 89, 1)
    """
    return max(1, min(NEIGHBORS, n // n_classes))


@dataclass(frozen=True)
class KNNClassifier:
    """The training rows, and how their nearest vote."""

    training: TrainingRows
    k: int
    device: str
    """As :func:`~qscore.evaluate.probes.devices.place` takes it."""
    temperature: float = TEMPERATURE

    def classify(self, H: Float[Any, "n r"]) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return each row's class, the first among equals, and that class's share of the votes."""
        n, r = H.shape
        placement = place(self.device, 2.0 * n * len(self.training) * r)
        codes, confidence = np.empty(n, dtype=np.intp), np.empty(n)
        step = max(1, TEST_BYTES // (4 * r + 12 * self.k))
        passes = -(-n // step)
        with progress("nearest neighbours", passes * len(self.training), "rows") as advance:
            for start in range(0, n, step):
                at = slice(start, min(start + step, n))
                found = most_similar(np.asarray(H[at]), self.training, self.k, placement, advance)
                codes[at], confidence[at] = self._vote(*found)
        return codes, confidence

    def _vote(
        self, similarity: Float[np.ndarray, "m k"], neighbors: Integer[np.ndarray, "m k"]
    ) -> tuple[Integer[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        c = len(self.training.classes)
        codes, confidence = np.empty(len(similarity), dtype=np.intp), np.empty(len(similarity))
        for start in range(0, len(similarity), TILE):
            at = slice(start, start + TILE)
            weight = np.exp((similarity[at].astype(np.float64) - 1.0) / self.temperature)
            row = np.arange(len(weight))[:, None]
            place_of_vote = row * c + self.training.codes[neighbors[at]]
            votes = np.bincount(place_of_vote.ravel(), weight.ravel(), minlength=len(weight) * c).reshape(-1, c)
            codes[at], confidence[at] = votes.argmax(axis=1), votes.max(axis=1) / votes.sum(axis=1)
        return codes, confidence


def most_similar(
    H: Float[np.ndarray, "m r"], training: TrainingRows, k: int, placement: Placement, advance: Any = None
) -> tuple[Float[np.ndarray, "m k"], Integer[np.ndarray, "m k"]]:
    """Find the k training rows of largest cosine similarity to each row, in one pass over the training rows.

    Parameters
    ----------
    H : ndarray of shape (m, r)
        Finite rows, all held in memory. An all-zero row has similarity 0 to every row.
    training : TrainingRows
        At least k rows; read a few thousand at a time.
    k : int
        At least 1.
    placement : Placement
        Where similarities are computed.
    advance : callable, optional
        Told the number of training rows just done.

    Returns
    -------
    similarity : ndarray of shape (m, k), float32
        In no particular order.
    neighbors : ndarray of shape (m, k), int
        The places of those training rows among the valid ones. Which of several equally similar rows is the k-th is
        not determined.
    """
    queries = placement.put(_unit(H))
    kept: list[tuple[Any, Any]] = []
    for start, rows in _tiles(training):
        tile = placement.put(_unit(rows))
        for number, first in enumerate(range(0, len(H), TILE)):
            S, places = _largest(queries[first : first + TILE] @ tile.T, k)  # (m, k) of (m, tile)
            places = places + start
            if start == 0:
                kept.append((S, places))
            else:
                kept[number] = _merged(kept[number], (S, places), k)
        if advance is not None:
            advance(len(rows))
    similarity, neighbors = zip(*((placement.take(S), placement.take(places)) for S, places in kept), strict=True)
    return np.concatenate(similarity), np.concatenate(neighbors)


def _largest(S: Float[Any, "m t"], k: int) -> tuple[Float[Any, "m s"], Integer[Any, "m s"]]:
    """Return the k largest entries of each row, or all if there are fewer, and their columns."""
    k = min(k, S.shape[1])
    if not isinstance(S, np.ndarray):
        values, columns = S.topk(k, dim=1, sorted=False)
        return values, columns
    columns = np.argpartition(S, S.shape[1] - k, axis=1)[:, S.shape[1] - k :]
    return np.take_along_axis(S, columns, axis=1), columns


def _merged(one: tuple[Any, Any], other: tuple[Any, Any], k: int) -> tuple[Any, Any]:
    """Return the k largest similarities of two sets, and the places that belong to them."""
    xp = array_namespace(one[0])
    S, places = (xp.concat(pair, axis=1) for pair in zip(one, other, strict=True))
    S, columns = _largest(S, k)
    return S, xp.take_along_axis(places, columns, axis=1)


def _tiles(training: TrainingRows) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(training), TILE):
        yield start, training.take(np.arange(start, min(start + TILE, len(training))))


def _unit(H: np.ndarray) -> np.ndarray:
    """Return rows with unit L2 norm in float32, all-zero ones as they are."""
    wide = H.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(wide, norm, out=np.zeros_like(wide), where=norm > 0).astype(np.float32)
    return unit
