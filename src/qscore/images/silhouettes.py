"""A hundred silhouettes that can be told apart, each a set of points in the unit disc."""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from math import cos, pi, radians, sin

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["NAMES", "draw_silhouette"]

FINEST = 160  # cells across the raster that extents are measured on
OUTLINE = 1.6  # half the side of that raster, before scaling

Coordinates = Float[np.ndarray, "h w"]
Region = Callable[[Coordinates, Coordinates], Bool[np.ndarray, "h w"]]  # x to the right, y downwards
Point = tuple[float, float]


@lru_cache(maxsize=256)
def draw_silhouette(name: str, side: int) -> Bool[np.ndarray, "side side"]:
    """Draw a silhouette about as large as fits into the disc that touches a square's four sides.

    The centre of its bounding box is the square's centre, and its farthest point lies on the disc. It keeps its own
    proportions, so the share of the disc that it fills differs from one to the next.

    Parameters
    ----------
    name : str
        One of ``NAMES``.
    side : int
        Pixels along each side of the square, >= 1.

    Returns
    -------
    ndarray of bool, shape (side, side)
        True inside; read-only, since all callers share it.

    Examples
    --------
    >>> disc = draw_silhouette("disc", 100)
    >>> round(float(disc.mean()), 2), bool(disc[0, 0]), bool(disc[50, 50])
    (0.77, False, True)
    """
    x, y, scale = _frame(name)
    centres = (2 * np.arange(side) + 1) / side - 1  # of the pixels, in (-1, 1)
    v, u = np.meshgrid(centres * scale + y, centres * scale + x, indexing="ij")
    drawn = SILHOUETTES[name](u, v)
    drawn.flags.writeable = False
    return drawn


@cache
def _frame(name: str) -> tuple[float, float, float]:
    """Return the centre of a silhouette's bounding box, and the distance of its farthest point from there."""
    centres = ((2 * np.arange(FINEST) + 1) / FINEST - 1) * OUTLINE
    v, u = np.meshgrid(centres, centres, indexing="ij")
    inside = SILHOUETTES[name](u, v)
    x, y = u[inside], v[inside]
    middle_x, middle_y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    farthest = np.hypot(x - middle_x, y - middle_y).max() + OUTLINE / FINEST
    return float(middle_x), float(middle_y), float(farthest)


def _disc(x: float = 0.0, y: float = 0.0, r: float = 1.0, *, ry: float | None = None) -> Region:
    return lambda u, v: ((u - x) / r) ** 2 + ((v - y) / (r if ry is None else ry)) ** 2 <= 1


def _box(left: float, top: float, right: float, bottom: float) -> Region:
    return lambda u, v: (u >= left) & (u <= right) & (v >= top) & (v <= bottom)


def _polygon(*corners: Point) -> Region:
    """Return the inside of a closed line, by counting its crossings on the way to the right."""

    def inside(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
        odd = np.zeros(u.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y0 != y1:
                odd ^= ((y0 > v) != (y1 > v)) & (u < (x1 - x0) * (v - y0) / (y1 - y0) + x0)
        return odd

    return inside


def _regular(n: int, *, turn: float = 0.0, inner: float | None = None, r: float = 1.0) -> Region:
    """Return a regular polygon, or with an inner radius a star, its first corner on top and then turned clockwise."""
    radii = [r] if inner is None else [r, r * inner]
    step = 2 * pi / (n * len(radii))
    corners = [(radii[i % len(radii)], radians(turn) + i * step) for i in range(n * len(radii))]
    return _polygon(*((radius * sin(angle), -radius * cos(angle)) for radius, angle in corners))


def _stroke(*points: Point, width: float = 0.3) -> Region:
    """Return all points near a broken line, its ends and corners round."""

    def near(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
        found = np.zeros(u.shape, bool)
        for (x0, y0), (x1, y1) in pairwise(points):
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            found |= np.hypot(u - x0 - along * dx, v - y0 - along * dy) <= width / 2
        return found

    return near


def _arc(x: float, y: float, r: float, start: float, stop: float, *, width: float = 0.3) -> Region:
    """Return a stroke along a circle, clockwise from one angle to another, in degrees from the top."""
    angles = np.radians(np.linspace(start, stop, 25))
    points = [(x + r * float(np.sin(a)), y - r * float(np.cos(a))) for a in angles]
    return _stroke(*points, width=width)


def _petals(n: int, depth: float) -> Region:
    return lambda u, v: np.hypot(u, v) <= (1 + depth * np.cos(n * np.arctan2(u, -v))) / (1 + depth)


def _spiral(turns: float) -> Region:
    angles = np.linspace(0.6, 2 * pi * turns, 60)
    points = [(a * sin(a) / (2 * pi * turns), -a * cos(a) / (2 * pi * turns)) for a in angles.tolist()]
    return _stroke(*points, width=0.24)


def _any(*regions: Region) -> Region:
    def inside(u: Coordinates, v: Coordinates) -> Bool[np.ndarray, "h w"]:
        found: Bool[np.ndarray, "h w"] = np.logical_or.reduce([region(u, v) for region in regions])
        return found

    return inside


def _cut(region: Region, *holes: Region) -> Region:
    return lambda u, v: region(u, v) & ~_any(*holes)(u, v)


def _turned(region: Region, degrees: float) -> Region:
    """Turn clockwise about the origin."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return lambda u, v: region(c * u + s * v, -s * u + c * v)


def _lines(*lines: Sequence[Point], width: float = 0.32) -> Region:
    return _any(*(_stroke(*line, width=width) for line in lines))


TRIANGLE, SQUARE, HEART = _regular(3), _box(-0.7, -0.7, 0.7, 0.7), _polygon((-0.93, -0.25), (0.93, -0.25), (0, 0.95))
ARROW = _polygon((0, -1), (0.8, -0.1), (0.28, -0.1), (0.28, 1), (-0.28, 1), (-0.28, -0.1), (-0.8, -0.1))
HOURGLASS = _polygon((-0.7, -1), (0.7, -1), (0.12, 0), (0.7, 1), (-0.7, 1), (-0.12, 0))
PLUS = _any(_box(-1, -0.3, 1, 0.3), _box(-0.3, -1, 0.3, 1))
CRESCENT = _cut(_disc(), _disc(0.55, 0, 0.85))
HALF, LYING, STANDING = _cut(_disc(), _box(-2, 0, 2, 2)), _box(-1, -0.3, 1, 0.3), _box(-0.3, -1, 0.3, 1)
CHEVRON = _polygon((0, -0.8), (1, 0.2), (1, 0.85), (0, -0.15), (-1, 0.85), (-1, 0.2))
TWO_ARROWS = _polygon((0, -1), (0.65, -0.35), (0.24, -0.35), (0.24, 0.35), (0.65, 0.35), (0, 1), (-0.65, 0.35),
                      (-0.24, 0.35), (-0.24, -0.35), (-0.65, -0.35))  # fmt: skip
TEE = _lines([(-0.8, -0.9), (0.8, -0.9)], [(0, -0.9), (0, 0.9)])
LETTER_L = _lines([(-0.5, -0.9), (-0.5, 0.9), (0.6, 0.9)])
YOU = _any(_arc(0, 0.2, 0.65, 90, 270), _lines([(-0.65, 0.2), (-0.65, -0.9)], [(0.65, 0.2), (0.65, -0.9)], width=0.3))
VEE, EM = _lines([(-0.7, -0.9), (0, 0.9), (0.7, -0.9)]), [(-0.8, 0.9), (-0.8, -0.9), (0, 0.3), (0.8, -0.9), (0.8, 0.9)]
BONE = _any(
    _stroke((0, -0.6), (0, 0.6), width=0.34), *(_disc(x, y, 0.32) for x in (-0.26, 0.26) for y in (-0.75, 0.75))
)

# Ordered so that the first ones differ most. No two may be mirror images, which augmentation would merge.
SILHOUETTES: dict[str, Region] = {
    "disc": _disc(),
    "triangle": TRIANGLE,
    "star": _regular(5, inner=0.4),
    "plus": PLUS,
    "ring": _cut(_disc(), _disc(r=0.6)),
    "square": SQUARE,
    "crescent": CRESCENT,
    "heart": _any(HEART, _disc(-0.46, -0.36, 0.48), _disc(0.46, -0.36, 0.48)),
    "arrow": ARROW,
    "hourglass": HOURGLASS,
    "letter T": TEE,
    "bar lying": LYING,
    "bar standing": STANDING,
    "letter L": LETTER_L,
    "half disc": HALF,
    "frame": _cut(SQUARE, _box(-0.4, -0.4, 0.4, 0.4)),
    "saltire": _turned(PLUS, 45),
    "flower": _petals(5, 0.35),
    "letter U": YOU,
    "letter Z": _lines([(-0.7, -0.8), (0.7, -0.8), (-0.7, 0.8), (0.7, 0.8)]),
    "drop": _any(_disc(0, 0.35, 0.62), _polygon((0, -1), (0.54, 0.05), (-0.54, 0.05))),
    "letter H": _lines([(-0.6, -0.9), (-0.6, 0.9)], [(0.6, -0.9), (0.6, 0.9)], [(-0.6, 0), (0.6, 0)]),
    "bolt": _polygon((0.2, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.25, 1), (0.6, -0.25), (0.1, -0.25), (0.5, -1)),
    "chevron": CHEVRON,
    "pac-man": _cut(_disc(), _polygon((-0.1, 0), (2, -1.3), (2, 1.3))),
    "house": _polygon((0, -1), (0.9, -0.2), (0.65, -0.2), (0.65, 0.9), (-0.65, 0.9), (-0.65, -0.2), (-0.9, -0.2)),
    "two bars lying": _any(_box(-0.9, -0.7, 0.9, -0.2), _box(-0.9, 0.2, 0.9, 0.7)),
    "two bars standing": _any(_box(-0.7, -0.9, -0.2, 0.9), _box(0.2, -0.9, 0.7, 0.9)),
    "two dots": _any(_disc(-0.55, 0, 0.42), _disc(0.55, 0, 0.42)),
    "four dots": _any(*(_disc(x, y, 0.4) for x in (-0.5, 0.5) for y in (-0.5, 0.5))),
    "diamond": _polygon((0, -1), (0.55, 0), (0, 1), (-0.55, 0)),
    "spark": _regular(4, inner=0.28),
    "letter E": _lines([(0.6, -0.9), (-0.5, -0.9), (-0.5, 0.9), (0.6, 0.9)], [(-0.5, 0), (0.5, 0)]),
    "letter S": _any(_arc(0, -0.45, 0.45, 90, -180), _arc(0, 0.45, 0.45, 0, 270 - 90)),
    "letter Y": _lines([(-0.7, -0.9), (0, -0.05), (0.7, -0.9)], [(0, -0.05), (0, 0.9)]),
    "hash": _lines(*([(x, -0.9), (x, 0.9)] for x in (-0.4, 0.4)), *([(-0.9, y), (0.9, y)] for y in (-0.4, 0.4)),
                   width=0.22),
    "stairs": _polygon((-0.8, 0.8), (-0.8, 0.27), (-0.27, 0.27), (-0.27, -0.27), (0.27, -0.27), (0.27, -0.8),
                       (0.8, -0.8), (0.8, 0.8)),
    "target": _cut(_disc(), _cut(_disc(r=0.72), _disc(r=0.4))),
    "ellipse lying": _disc(ry=0.5),
    "ellipse standing": _disc(r=0.5, ry=1.0),
    "triangle down": _turned(TRIANGLE, 180),
    "arrow down": _turned(ARROW, 180),
    "arrow aside": _turned(ARROW, 90),
    "bow tie": _turned(HOURGLASS, 90),
    "half disc down": _turned(HALF, 180),
    "half disc aside": _turned(HALF, 90),
    "crescent up": _turned(CRESCENT, -90),
    "crescent down": _turned(CRESCENT, 90),
    "chevron down": _turned(CHEVRON, 180),
    "chevron aside": _turned(CHEVRON, 90),
    "arrows up and down": TWO_ARROWS,
    "arrows left and right": _turned(TWO_ARROWS, 90),
    "letter T down": _turned(TEE, 180),
    "letter T aside": _turned(TEE, 90),
    "letter L down": _turned(LETTER_L, 90),
    "letter U down": _turned(YOU, 180),
    "letter C": _turned(YOU, 90),
    "letter V": VEE,
    "letter A": _any(_turned(VEE, 180), _stroke((-0.4, 0.35), (0.4, 0.35))),
    "letter N": _lines([(-0.6, 0.9), (-0.6, -0.9), (0.6, 0.9), (0.6, -0.9)]),
    "letter M": _stroke(*EM),
    "letter W": _turned(_stroke(*EM), 180),
    "letter F": _lines([(0.6, -0.9), (-0.5, -0.9), (-0.5, 0.9)], [(-0.5, 0), (0.5, 0)]),
    "letter K": _lines([(-0.5, -0.9), (-0.5, 0.9)], [(0.6, -0.9), (-0.45, 0), (0.6, 0.9)]),
    "letter P": _any(_stroke((-0.5, -0.9), (-0.5, 0.9)), _arc(0, -0.4, 0.5, -100, 190)),
    "digit 4": _lines([(0.3, 0.9), (0.3, -0.9), (-0.7, 0.35), (0.75, 0.35)], width=0.28),
    "digit 3": _any(_arc(0, -0.45, 0.45, -90, 180), _arc(0, 0.45, 0.45, 0, 270)),
    "digit 7": _lines([(-0.6, -0.9), (0.6, -0.9), (-0.2, 0.9)]),
    "digit 8": _any(_arc(0, -0.48, 0.42, 0, 360, width=0.26), _arc(0, 0.42, 0.52, 0, 360, width=0.26)),
    "spiral": _spiral(2.2),
    "zigzag": _stroke((-1, 0.35), (-0.5, -0.35), (0, 0.35), (0.5, -0.35), (1, 0.35), width=0.26),
    "wave": _any(_arc(-0.5, 0, 0.45, -90, 90, width=0.28), _arc(0.4, 0, 0.45, -90, -270, width=0.28)),
    "trefoil": _petals(3, 0.5),
    "quatrefoil": _any(*(_disc(x, y, 0.5) for x, y in ((0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)))),
    "daisy": _petals(9, 0.3),
    "burst": _regular(12, inner=0.5),
    "hexagram": _regular(6, inner=0.5774),
    "pentagon": _regular(5),
    "trapezium": _polygon((-0.4, -0.6), (0.4, -0.6), (1, 0.6), (-1, 0.6)),
    "parallelogram": _polygon((-0.35, -0.5), (1.05, -0.5), (0.35, 0.5), (-1.05, 0.5)),
    "kite": _polygon((0, -1), (0.6, -0.45), (0, 1), (-0.6, -0.45)),
    "triangle frame": _cut(_regular(3), _regular(3, r=0.45)),
    "diamond frame": _cut(_regular(4), _regular(4, r=0.55)),
    "window": _cut(SQUARE, *(_box(x - 0.22, y - 0.22, x + 0.22, y + 0.22) for x in (-0.32, 0.32)
                             for y in (-0.32, 0.32))),
    "wheel": _cut(_disc(), _cut(_disc(r=0.78), _turned(_any(_box(-1, -0.13, 1, 0.13), _box(-0.13, -1, 0.13, 1)), 45))),
    "no entry": _cut(_disc(), _box(-0.75, -0.27, 0.75, 0.27)),
    "square with slash": _cut(SQUARE, _stroke((-1, 1), (1, -1), width=0.36)),
    "three dots": _any(_disc(0, -0.5, 0.4), _disc(-0.52, 0.4, 0.4), _disc(0.52, 0.4, 0.4)),
    "three bars": _any(*(_box(-0.85, y - 0.15, 0.85, y + 0.15) for y in (-0.6, 0, 0.6))),
    "chequers": _any(*(_box(x - 0.3, y - 0.3, x + 0.3, y + 0.3) for x, y in
                       ((-0.6, -0.6), (0.6, -0.6), (0, 0), (-0.6, 0.6), (0.6, 0.6)))),
    "bone": BONE,
    "dumbbell": _any(_stroke((-0.6, 0), (0.6, 0), width=0.24), _disc(-0.62, 0, 0.38), _disc(0.62, 0, 0.38)),
    "mushroom": _any(_cut(_disc(0, -0.1, 0.9), _box(-2, -0.1, 2, 2)), _box(-0.28, -0.15, 0.28, 0.9)),
    "tree": _any(_polygon((0, -1), (0.55, -0.2), (-0.55, -0.2)), _polygon((0, -0.6), (0.75, 0.5), (-0.75, 0.5)),
                 _box(-0.17, 0.45, 0.17, 1)),
    "fish": _any(_disc(-0.2, 0, 0.75, ry=0.5), _polygon((0.35, 0), (1, -0.55), (1, 0.55))),
    "key": _any(_cut(_disc(0, -0.6, 0.42), _disc(0, -0.6, 0.18)),
                _lines([(0, -0.2), (0, 0.9)], [(0, 0.45), (0.4, 0.45)], [(0, 0.85), (0.4, 0.85)], width=0.22)),
    "cup": _any(_box(-0.8, -0.6, 0.35, 0.75), _arc(0.35, 0.05, 0.42, 0, 180, width=0.22)),
    "fork": _lines([(-0.55, -0.9), (-0.55, 0), (0.55, 0), (0.55, -0.9)], [(0, -0.9), (0, 0.95)], width=0.24),
    "crown": _polygon((-0.85, 0.6), (-0.85, -0.6), (-0.4, 0), (0, -0.75), (0.4, 0), (0.85, -0.6), (0.85, 0.6)),
    "umbrella": _any(_cut(_disc(0, -0.1, 0.95, ry=0.85), _box(-2, -0.1, 2, 2)),
                     _stroke((0, -0.2), (0, 0.7), width=0.17), _arc(0.2, 0.7, 0.2, 90, 270, width=0.17)),
}  # fmt: skip
NAMES = tuple(SILHOUETTES)
