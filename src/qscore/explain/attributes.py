"""What each feature says of drawn shapes: mutual information of its high activation with every attribute."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy.special import xlogy
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from qscore._progress import progress
from qscore.images import ImageSource
from qscore.images.shapes import ATTRIBUTES, ShapesSource

__all__ = ["BACKGROUND", "OBJECT", "Carried", "attribute_codes", "carried", "tied"]

OBJECT = ("shape", "colour", "texture", "size", "position")
BACKGROUND = ("background", "background colour")
LEAST = 10  # images in which a feature is highly active, and in which it is not
PERMUTATIONS = 20


@dataclass(frozen=True)
class Carried:
    """What the features' high activation says of attributes."""

    information: dict[str, Float[np.ndarray, " r"]]
    """By attribute; NaN where a feature is highly active in too few images, or too many."""
    gap: Float[np.ndarray, " r"]
    """That of the best attribute minus that of the second."""
    chance: Float[np.ndarray, " r"]
    """The gap's mean where images are shuffled against their attributes."""
    best: list[str | None]
    """The best attribute."""


def attribute_codes(images: ImageSource) -> dict[str, Int[np.ndarray, " n"]] | None:
    """Return the attributes of drawn shapes, as positions in `ATTRIBUTES`; None where other images are among them."""
    places = [images.record(i).path.rpartition("#") for i in range(len(images))]
    if not all(container.partition(":")[0] == "shapes" for container, _, _ in places):
        return None
    codes = {name: np.empty(len(places), np.int64) for name in ATTRIBUTES}
    containers = np.array([container for container, _, _ in places])
    positions = np.array([int(position) for _, _, position in places])
    for container in np.unique(containers):
        here = containers == container
        for name, found in ShapesSource(str(container)).codes(positions[here]).items():
            codes[name][here] = found
    return codes


def tied(codes: Mapping[str, Int[np.ndarray, " n"]]) -> tuple[str, str, float]:
    """Return the two attributes that go together the most, and their adjusted mutual information (1: the same)."""
    pairs = {(a, b): float(adjusted_mutual_info_score(codes[a], codes[b])) for a, b in combinations(codes, 2)}
    (a, b), most = max(pairs.items(), key=lambda pair: pair[1])
    return a, b, most


def carried(
    indptr: Int[np.ndarray, " n+1"],
    active: Int[np.ndarray, " nnz"],
    n_features: int,
    codes: Mapping[str, Int[np.ndarray, " n"]],
    *,
    seed: int = 0,
) -> Carried:
    """Measure how much of each feature's high activation every attribute explains.

    Of feature j and an attribute a, with x_j whether j is in ``L_i``: ``(I(x_j; a) - E) / (min(H(x_j), H(a)) - E)``, E
    the mutual information to be expected of as many images drawn blindly: the adjusted mutual information of
    scikit-learn (``average_method="min"``), which no number of values or images favours. 0 is chance; 1, where the
    attribute tells whether the feature is highly active. Since the best of several attributes leads the second by
    chance as well, the gap stands beside its mean over 20 shuffles of the images.

    Parameters
    ----------
    indptr, active : ndarray of int, shapes (n + 1,) and (nnz,)
        The images' sets L_i.
    n_features : int
        r.
    codes : mapping of str to ndarray of int, shape (n,)
        The images' attributes.
    seed : int, default=0
        Of the shuffles.

    References
    ----------
    Vinh, Epps and Bailey, "Information theoretic measures for clusterings comparison", JMLR 2010.

    Examples
    --------
    >>> colour = np.arange(40) % 2
    >>> active = np.zeros(20, np.int64)  # feature 0 is highly active where the colour is 1
    >>> found = carried(np.append(0, np.cumsum(colour)), active, 2, {"colour": colour, "size": np.arange(40) // 20})
    >>> found.information["colour"].round(3).tolist(), found.best
    ([1.0, nan], ['colour', None])
    """
    of_image = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    tables = {name: _Attribute(np.unique(values, return_inverse=True)[1]) for name, values in codes.items()}
    counts = np.bincount(active, minlength=n_features)
    n = len(indptr) - 1
    enough = (counts >= LEAST) & (n - counts >= LEAST)
    information = {name: table.information(of_image, active, counts, enough) for name, table in tables.items()}
    values = np.stack(list(information.values()))
    rng = np.random.default_rng([seed, 2])
    chance = np.zeros(n_features)
    with progress("attributes by chance", PERMUTATIONS, "shuffles") as advance:
        for _ in range(PERMUTATIONS):
            shuffled = rng.permutation(n)[of_image]
            blind = [table.information(shuffled, active, counts, enough) for table in tables.values()]
            chance += _gap(np.stack(blind)) / PERMUTATIONS
            advance(1)
    names = list(information)
    best = [names[int(values[:, j].argmax())] if enough[j] else None for j in range(n_features)]
    return Carried(information, _gap(values), chance, best)


def _gap(values: Float[np.ndarray, "attributes r"]) -> Float[np.ndarray, " r"]:
    second, first = np.sort(values, axis=0)[-2:]
    return np.asarray(first - second)


class _Attribute:
    """An attribute's values in the images, and what to expect of it by chance."""

    def __init__(self, codes: Int[np.ndarray, " n"]) -> None:
        self._codes = codes
        self._sizes = np.bincount(codes)
        self._expected: dict[int, float] = {}

    def information(
        self, of_image: np.ndarray, active: np.ndarray, counts: np.ndarray, enough: np.ndarray
    ) -> Float[np.ndarray, " r"]:
        """Return the adjusted mutual information of every feature; ``of_image`` holds the image of each activation."""
        n, k = len(self._codes), len(self._sizes)
        inside = np.bincount(active * k + self._codes[of_image], minlength=len(counts) * k).reshape(-1, k)
        cells = np.stack([inside, self._sizes - inside]) / n  # (2, r, k)
        rate, sizes = counts / n, self._sizes / n
        own = -xlogy(rate, rate) - xlogy(1 - rate, 1 - rate)
        entropy = float(-xlogy(sizes, sizes).sum())
        shared = own + entropy + xlogy(cells, cells).sum((0, 2))
        expected = np.array([self._by_chance(int(c)) if e else np.nan for c, e in zip(counts, enough, strict=True)])
        room = np.minimum(own, entropy) - expected
        return np.asarray(np.divide(shared - expected, room, out=np.where(enough, 0.0, np.nan), where=room > 1e-12))

    def _by_chance(self, count: int) -> float:
        """Return the expected mutual information with any feature that is highly active in ``count`` images."""
        if count not in self._expected:
            # It depends on the margins alone: these cells have them.
            below = np.minimum(np.cumsum(self._sizes), count)
            inside = np.diff(below, prepend=0)
            table = np.stack([inside, self._sizes - inside]).astype(np.int64)
            self._expected[count] = float(expected_mutual_information(table, int(self._sizes.sum())))
        return self._expected[count]
