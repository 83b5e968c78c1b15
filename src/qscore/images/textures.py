"""A hundred two-tone textures: twenty patterns, each at five scales."""

from collections.abc import Callable
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from jaxtyping import Bool, Float, UInt64

__all__ = ["FILLS", "NAMES", "draw_texture", "hash_integers"]

Coordinates = Float[np.ndarray, "h w"]
Pattern = Callable[[Coordinates, Coordinates], Bool[np.ndarray, "h w"]]

STRIDE = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


def hash_integers(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Scatter integers over 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

    A generator of NumPy's cannot be asked for its i-th number, and its stream may change from version to version.

    Examples
    --------
    >>> [hex(value) for value in hash_integers(np.array([0, 1], np.uint64)).tolist()]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    z = (values + np.uint64(1)) * STRIDE
    for shift, factor in MIXERS:
        z = (z ^ (z >> np.uint64(shift))) * factor
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=256)
def draw_texture(name: str, size: int) -> Bool[np.ndarray, "side side"]:
    """Draw a texture on a canvas that an image of ``size`` pixels can be cut out of anywhere.

    Parameters
    ----------
    name : str
        One of ``NAMES`` or ``FILLS``.
    size : int
        Side of the image in pixels, >= 1; periods are a fraction of it.

    Returns
    -------
    ndarray of bool, shape (size + size // 2, size + size // 2)
        True where the lighter of two tones goes; read-only, since all callers share it.
    """
    pattern, period = TEXTURES[name]
    axis = (np.arange(size + size // 2) + 0.5) / (size * period)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    drawn = np.ascontiguousarray(pattern(u, v))
    drawn.flags.writeable = False
    return drawn


def _fraction(t: Coordinates) -> Coordinates:
    fraction: Coordinates = t - np.floor(t)
    return fraction


def _from_middle(t: Coordinates) -> Coordinates:
    """Return the distance to the middle of the unit cell that a coordinate lies in."""
    return np.abs(_fraction(t) - 0.5)


def _odd(t: Coordinates) -> Bool[np.ndarray, "h w"]:
    odd: Bool[np.ndarray, "h w"] = np.floor(t).astype(np.int64) % 2 == 1
    return odd


def _waves(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    return _fraction(v + 0.3 * np.sin(pi * u)) < 0.5


def _zigzag(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    return _fraction(v + 2 * np.abs(_fraction(u / 2) - 0.5)) < 0.5


def _bricks(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    shifted = u / 2 + 0.5 * _odd(v)
    return (_fraction(v) > 0.22) & (_fraction(shifted) > 0.11)


def _scales(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    """Return arcs that hang in rows, like tiles of a roof."""
    lit = np.zeros(u.shape, bool)
    for row in (0, 1):
        du, dv = _fraction(u + 0.5 * row) - 0.5, _fraction(v + 0.5 * row) - 0.1
        lit |= np.abs(np.hypot(du, dv) - 0.5) < 0.11
    return lit


def _weave(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    along = np.where(_odd(u) ^ _odd(v), u, v)
    return _fraction(3 * along) < 0.55


def _triangles(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    return np.abs(_fraction(u + 0.5 * _odd(v)) - 0.5) < 0.5 * _fraction(v)


def _speckle(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    """Return one dot in each cell, somewhere."""
    cells = np.floor(u).astype(np.uint64) * np.uint64(1 << 20) + np.floor(v).astype(np.uint64)
    bits = hash_integers(cells)
    x = 0.25 + 0.5 * (bits & np.uint64(1023)) / 1023
    y = 0.25 + 0.5 * ((bits >> np.uint64(10)) & np.uint64(1023)) / 1023
    return np.hypot(_fraction(u) - x, _fraction(v) - y) < 0.25


def _blotches(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
    """Return where plane waves of one length and twelve directions add up to more than nothing."""
    total = np.zeros(u.shape)
    for k, bits in enumerate(hash_integers(np.arange(12, dtype=np.uint64)).tolist()):
        angle = pi * k / 12
        total += np.cos(2 * pi * (cos(angle) * u + sin(angle) * v) * 0.7 + bits * 2 * pi / 2**64)
    return total > 0


PATTERNS: dict[str, Pattern] = {
    "stripes lying": lambda u, v: _fraction(v) < 0.5,
    "dots": lambda u, v: np.hypot(_from_middle(u), _from_middle(v)) < 0.34,
    "checks": lambda u, v: _odd(u) ^ _odd(v),
    "waves": _waves,
    "grid": lambda u, v: (_fraction(u) < 0.25) | (_fraction(v) < 0.25),
    "blotches": _blotches,
    "stripes standing": lambda u, v: _fraction(u) < 0.5,
    "circles": lambda u, v: _fraction(np.hypot(u - 4, v - 4)) < 0.5,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "stripes slanting": lambda u, v: _fraction((u + v) * 0.7) < 0.5,
    "pluses": lambda u, v: (
        (np.maximum(_from_middle(u), _from_middle(v)) < 0.4) & (np.minimum(_from_middle(u), _from_middle(v)) < 0.13)
    ),
    "diamonds": lambda u, v: _odd(u + v / 2) ^ _odd(u - v / 2),
    "scales": _scales,
    "speckle": _speckle,
    "weave": _weave,
    "triangles": _triangles,
    "rings": lambda u, v: np.abs(np.hypot(_from_middle(u), _from_middle(v)) - 0.3) < 0.11,
    "thin lines": lambda u, v: _fraction(v) < 0.2,
    "lattice": lambda u, v: (_fraction((u + v) * 0.7) < 0.22) | (_fraction((u - v) * 0.7) < 0.22),
}
PERIODS = {"": 1 / 6, ", wide": 1 / 3.4, ", fine": 1 / 11, ", broad": 1 / 4.5, ", small": 1 / 8}
NAMES = tuple(pattern + scale for scale in PERIODS for pattern in PATTERNS)
FILLS = ("plain", "striped", "dotted", "chequered", "wavy", "netted")
TEXTURES: dict[str, tuple[Pattern, float]] = {
    pattern + scale: (PATTERNS[pattern], period) for scale, period in PERIODS.items() for pattern in PATTERNS
} | {
    "plain": (lambda u, v: np.zeros(u.shape, bool), 1.0),
    "striped": (PATTERNS["stripes slanting"], 1 / 11),
    "dotted": (PATTERNS["dots"], 1 / 11),
    "chequered": (PATTERNS["checks"], 1 / 13),
    "wavy": (PATTERNS["waves"], 1 / 11),
    "netted": (PATTERNS["grid"], 1 / 11),
}
