"""Coloured shapes on textured backgrounds, drawn on demand: a data set in which core and spurious cues are known.

The class of an image is its shape. The background's texture is tied to the class at a chosen rate: a cue that
predicts the class without being of it. Everything else is drawn independently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from math import cos, radians, sin
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32
from PIL import Image

from qscore._validate import QScoreError, nearest
from qscore.images import silhouettes, textures
from qscore.images.sources import ImageRecord, fingerprint_lines
from qscore.images.textures import hash_integers

__all__ = ["ATTRIBUTES", "Shapes", "ShapesSource", "drawing"]

VERSION = 1  # of the drawing; locators of one version reopen the same pixels
MOST_IMAGES, LARGEST_CLASSES, SMALLEST_SIZE, LARGEST_SIZE = 10_000_000, 100, 16, 1024
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.16, 0.16),
    "orange": (0.96, 0.55, 0.10),
    "yellow": (0.92, 0.86, 0.20),
    "green": (0.22, 0.66, 0.26),
    "cyan": (0.25, 0.80, 0.82),
    "blue": (0.18, 0.34, 0.86),
    "purple": (0.52, 0.22, 0.70),
    "pink": (0.96, 0.60, 0.76),
}
SIZES = {"small": (0.18, 0.21), "medium": (0.25, 0.29), "large": (0.33, 0.37)}  # radii over the image's side
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
TURN = 10.0  # degrees either way
TONES = ((0.50, 0.95), (0.75, 1.05))  # darker and lighter, of the background and of the shape
BRIGHTNESS = (0.85, 1.10)
GRAIN = 12  # levels of the noise on each channel
DRAWS = 20
SPLITS = ("train", "test")
# Fixed for good, so that each image stays what it is: attributes by name, and the values that each can take.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": silhouettes.NAMES,
    "colour": tuple(COLOURS),
    "texture": textures.FILLS,
    "size": tuple(SIZES),
    "position": PLACES,
    "background": textures.NAMES,
    "background colour": tuple(COLOURS),
}


@dataclass(frozen=True)
class Shapes:
    """What images are drawn: each is a function of these settings and its position alone.

    An image's shape, place and colours do not depend on ``n``, ``spurious`` and ``size``: data sets that differ in
    these alone show the same scenes.

    Raises
    ------
    QScoreError
        If a value is outside its range.
    """

    n: int = 2000
    """Number of images, 1 to 10,000,000."""
    classes: int = 10
    """Number of classes, 2 to 100; each has a shape and a background of its own, the same with more classes."""
    spurious: float = 0.9
    """Share of the images whose background is tied to the class, 0 to 1; in all others it is drawn evenly from all.
    It is also the association of class and background by Cramer's V: 0 is none."""
    size: int = 64
    """Side in pixels, 16 to 1024; below 32 textures and thin shapes are hard to tell."""
    seed: int = 0
    """Of the scenes, 0 to 2**32 - 1."""
    split: str = "train"
    """``"train"`` or ``"test"``, which have no scene in common."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n", 1, MOST_IMAGES),
            ("classes", 2, LARGEST_CLASSES),
            ("size", SMALLEST_SIZE, LARGEST_SIZE),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise QScoreError(f"shapes: expected {name} to be an integer from {low} to {high}, got {value!r}")
        if isinstance(self.spurious, bool) or not isinstance(self.spurious, int | float) or not 0 <= self.spurious <= 1:
            raise QScoreError(f"shapes: expected spurious to be a number from 0 to 1, got {self.spurious!r}")
        if self.split not in SPLITS:
            raise QScoreError(f"shapes: expected split to be train or test, got {self.split!r}")

    @property
    def name(self) -> str:
        """What opens the same images: all settings, in one order."""
        return "shapes:" + ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @classmethod
    def from_name(cls, name: str) -> "Shapes":
        """Read ``"shapes"`` or ``"shapes:n=500,spurious=0"``; settings that are left out have their defaults.

        Raises
        ------
        QScoreError
            If a setting is unknown, comes twice, or has no such value.
        """
        kinds: dict[str, type] = {field.name: type(field.default) for field in fields(cls)}
        settings: dict[str, Any] = {}
        written = name.removeprefix("shapes").removeprefix(":")
        for entry in written.split(",") if written else ():
            key, equals, value = (part.strip() for part in entry.partition("="))
            if key not in kinds or not equals:
                raise QScoreError(
                    f"{name}: expected settings such as shapes:n=500,spurious=0.9, of {', '.join(kinds)}; "
                    f"got {entry!r}{'' if key in kinds else nearest(key, kinds)}"
                )
            if key in settings:
                raise QScoreError(f"{name}: expected each setting once, got {key} twice")
            try:
                settings[key] = kinds[key](value)
            except ValueError as error:
                kind = "an integer" if kinds[key] is int else "a number"
                raise QScoreError(f"{name}: expected {key} to be {kind}, got {value!r}") from error
        return cls(**settings)


def drawing(name: str) -> Shapes | None:
    """Return what a source or a locator draws, however many: images of one id are the same where this is; else None.

    Examples
    --------
    >>> drawing("shapes:n=50,size=32#7") == drawing("shapes:size=32"), drawing("photos/7.png") is None
    (True, True)
    """
    container = name.partition("#")[0]
    return replace(Shapes.from_name(container), n=1) if container.partition(":")[0] == "shapes" else None


@final
class ShapesSource:
    """The images of `Shapes`, drawn when they are asked for; masks and attributes are exact.

    Parameters
    ----------
    name : str
        ``"shapes"``, or with settings ``"shapes:n=500,classes=20,spurious=0.5,size=96,seed=1,split=test"``.

    Raises
    ------
    QScoreError
        If the settings are none.

    Examples
    --------
    >>> source = ShapesSource("shapes:n=50,split=test")
    >>> source.image(3).size, source.record(3).label == source.attributes(3)["shape"]
    ((64, 64), True)
    >>> sorted(source.masks(3))
    ['core', 'spurious']
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.shapes = Shapes.from_name(name)
        self.class_names: list[str] = list(silhouettes.NAMES[: self.shapes.classes])
        self._opened = self.shapes.name

    def __reduce__(self) -> tuple[type["ShapesSource"], tuple[str]]:
        return ShapesSource, (self.name,)

    @cached_property
    def labels(self) -> Sequence[str]:
        """The shape of each image."""
        return [self.class_names[code] for code in self.codes(range(len(self)))["shape"].tolist()]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings and the version of the drawing."""
        return fingerprint_lines([f"version {VERSION}", self._opened])

    def __len__(self) -> int:
        return self.shapes.n

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        id = f"shapes-{self.shapes.split}-{self.shapes.seed}-{index:06d}"
        shape = int(_classes(self.shapes, np.array([index]))[0])
        return ImageRecord(id, f"{self._opened}#{index}", self.class_names[shape])

    def image(self, index: int) -> Image.Image:
        """Draw an image in RGB."""
        size = self.shapes.size
        pixels = _paint(_Scene.at(self.shapes, index), size)
        return Image.frombytes("RGB", (size, size), pixels.tobytes(), "raw", "RGBX")

    def masks(self, index: int) -> dict[str, Bool[np.ndarray, "size size"]]:
        """Return the pixels of the shape, ``"core"``, and all others, ``"spurious"``."""
        core = np.zeros((self.shapes.size, self.shapes.size), bool)
        box, inside = _place(_Scene.at(self.shapes, index), self.shapes.size)
        core[box] = inside
        return {"core": core, "spurious": ~core}

    def attributes(self, index: int) -> dict[str, str]:
        """Return what an image shows: shape, colour, texture, size, position, background and its colour."""
        return {name: ATTRIBUTES[name][codes[0]] for name, codes in self.codes([index]).items()}

    def codes(self, indices: Sequence[int] | Int[np.ndarray, " k"]) -> dict[str, Int[np.ndarray, " k"]]:
        """Return the attributes of many images at once, as positions in ``ATTRIBUTES``."""
        where = np.asarray(indices, np.int64)
        return _codes(self.shapes, where, _uniforms(self.shapes, where))


@dataclass(frozen=True)
class _Scene:
    """What is in one image: attributes by their codes, and what varies within them."""

    codes: Mapping[str, int]
    u: tuple[float, ...]
    """The image's own uniform numbers in [0, 1)."""

    @classmethod
    def at(cls, shapes: Shapes, index: int) -> "_Scene":
        where = np.array([index], np.int64)
        u = _uniforms(shapes, where)
        codes = {name: int(code[0]) for name, code in _codes(shapes, where, u).items()}
        return cls(codes, tuple(u[0].tolist()))


def _uniforms(shapes: Shapes, indices: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k draws"]:
    """Return uniform numbers in [0, 1), of which every image has its own."""
    stream = hash_integers(np.array([shapes.seed * len(SPLITS) + SPLITS.index(shapes.split)], np.uint64))
    images = hash_integers(stream + indices.astype(np.uint64))
    bits = hash_integers(images[:, None] + np.arange(DRAWS, dtype=np.uint64) * np.uint64(1 << 32))
    return (bits >> np.uint64(11)) / 2.0**53


def _classes(shapes: Shapes, indices: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """Return classes: each once in a run of as many images, and in another order of turns in the next run."""
    stream = hash_integers(np.array([shapes.seed], np.uint64))
    runs = hash_integers(stream + (indices // shapes.classes).astype(np.uint64))
    return (indices + (runs >> np.uint64(33)).astype(np.int64)) % shapes.classes


def _codes(
    shapes: Shapes, indices: Int[np.ndarray, " k"], u: Float[np.ndarray, "k draws"]
) -> dict[str, Int[np.ndarray, " k"]]:
    counts = (shapes.classes, len(COLOURS), len(textures.FILLS), len(SIZES), len(PLACES), len(COLOURS) - 1)
    background, colour, fill, size, place, other = (u[:, 1:7] * counts).astype(np.int64).T
    shape = _classes(shapes, indices)
    return {
        "shape": shape,
        "colour": colour,
        "texture": fill,
        "size": size,
        "position": place,
        "background": np.where(u[:, 0] < shapes.spurious, shape, background),
        "background colour": (colour + 1 + other) % len(COLOURS),  # never the shape's own
    }


def _place(scene: _Scene, size: int) -> tuple[tuple[slice, slice], Bool[np.ndarray, "h w"]]:
    """Return the box around the shape, and which of its pixels the shape covers."""
    codes, u = scene.codes, scene.u
    low, high = SIZES[ATTRIBUTES["size"][codes["size"]]]
    radius = low + (high - low) * u[7]
    row, column = divmod(codes["position"], 3)
    x, y = (radius + (1 - 2 * radius) * (cell + part) / 3 for cell, part in ((column, u[8]), (row, u[9])))
    box_x, box_y = (
        slice(max(0, int((centre - radius) * size)), min(size, int((centre + radius) * size) + 1)) for centre in (x, y)
    )
    template = _template(codes["shape"], max(128, size))
    cells = len(template) - 2
    turn = radians(TURN * (2 * u[10] - 1))
    scale = cells / (2 * radius)  # cells of the template in an image's side
    dx = (np.arange(box_x.start, box_x.stop) + 0.5) / size - x
    dy = (np.arange(box_y.start, box_y.stop) + 0.5) / size - y
    middle = cells / 2 + 1
    across = (scale * cos(turn) * dx + middle)[None, :] + (scale * sin(turn) * dy)[:, None]
    down = (-scale * sin(turn) * dx + middle)[None, :] + (scale * cos(turn) * dy)[:, None]
    column_of, row_of = (np.clip(place, 0, cells + 1).astype(np.intp) for place in (across, down))
    return (box_y, box_x), template.ravel()[row_of * (cells + 2) + column_of]


@lru_cache(maxsize=LARGEST_CLASSES)
def _template(shape: int, cells: int) -> Bool[np.ndarray, "side side"]:
    """Return a silhouette with an empty cell all around, which everything outside falls on."""
    return np.pad(silhouettes.draw_silhouette(silhouettes.NAMES[shape], cells), 1)


def _paint(scene: _Scene, size: int) -> UInt32[np.ndarray, "size size"]:
    """Return the pixels, four bytes each (red, green, blue, nothing): so they are looked up and added at once."""
    codes, u = scene.codes, scene.u
    tone = _cut_out(textures.NAMES[codes["background"]], size, u[11], u[12]).astype(np.uint8)  # of each pixel, 0 to 3
    (rows, columns), inside = _place(scene, size)
    fill = _cut_out(textures.FILLS[codes["texture"]], size, u[13], u[14])[rows, columns]
    tone[rows, columns] = np.where(inside, fill + np.uint8(2), tone[rows, columns])
    pixels: UInt32[np.ndarray, "size size"] = _tones(codes, u).take(tone)
    top, left = _offset(u[17], 64), _offset(u[18], 64)
    pixels += _noise(size)[top : top + size, left : left + size]  # no byte overflows into the next
    return pixels


def _cut_out(name: str, size: int, across: float, down: float) -> Bool[np.ndarray, "size size"]:
    top, left = _offset(down, size // 2), _offset(across, size // 2)
    return textures.draw_texture(name, size)[top : top + size, left : left + size]


def _offset(u: float, n: int) -> int:
    return int(u * n)


def _tones(codes: Mapping[str, int], u: Sequence[float]) -> UInt32[np.ndarray, "4"]:
    """Return darker and lighter background, darker and lighter shape; each channel leaves room for the noise."""
    low, high = BRIGHTNESS
    table = []
    for name, draw, factors in zip(("background colour", "colour"), (15, 16), TONES, strict=True):
        base = COLOURS[ATTRIBUTES[name][codes[name]]]
        brightness = low + (high - low) * u[draw]
        table += [[*(min(1.0, channel * factor * brightness) for channel in base), 0.0] for factor in factors]
    return (np.array(table) * (255 - GRAIN)).astype(np.uint8).view(np.uint32)[:, 0]


@lru_cache(maxsize=4)
def _noise(size: int) -> UInt32[np.ndarray, "side side"]:
    """Return levels to add to each channel, 0 to GRAIN, on a canvas that every image takes another part of."""
    side = size + 64
    grain = np.zeros((side, side, 4), np.uint8)
    for channel in range(3):
        bits = hash_integers(np.arange(channel * side**2, (channel + 1) * side**2, dtype=np.uint64))
        grain[..., channel] = (bits % np.uint64(GRAIN + 1)).reshape(side, side)
    return grain.view(np.uint32)[..., 0]
