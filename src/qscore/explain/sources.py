"""Where masks come from: a folder, an archive, Salient ImageNet, or drawn shapes; matched to images, and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from qscore._validate import QScoreError
from qscore.encoders import Preprocessing
from qscore.explain.geometry import place_masks
from qscore.explain.grey import complement, read_mask
from qscore.explain.salient import SalientMasks, is_salient
from qscore.images import ImageRecord, ImageSource
from qscore.images.archive import ArchiveSource
from qscore.images.files import read_bytes
from qscore.images.folder import EXTENSIONS, FolderSource
from qscore.images.shapes import ShapesSource

__all__ = ["ArchiveMasks", "FolderMasks", "MaskSource", "Masks", "ShapesMasks", "open_masks"]

OBJECT = ("object", "background")


class MaskSource(Protocol):
    """Masks of images, found by the images' records."""

    @property
    def name(self) -> str:
        """What the user typed."""

    @property
    def kinds(self) -> tuple[str, str]:
        """What masks mark: ``("core", "spurious")``, or ``("object", "background")``, of which no verdict follows."""

    @property
    def frame(self) -> Preprocessing | None:
        """What masks of its size, which is not their images', went through already."""

    def find(self, record: ImageRecord) -> bool:
        """Tell whether an image has a mask."""

    def unused(self, records: Sequence[ImageRecord]) -> list[str] | None:
        """Return the masks that belong to no image; None where only some images have masks by design."""

    def read(self, record: ImageRecord) -> dict[str, Float[np.ndarray, "h w"]]:
        """Return an image's masks in [0, 1], by kind."""


@dataclass(frozen=True)
class Masks:
    """Images with their masks; made by `open_masks`."""

    source: MaskSource
    """Where the masks come from."""
    images: ImageSource
    """The images."""
    positions: list[int]
    """Positions of the images that have masks, ascending."""

    @property
    def kinds(self) -> tuple[str, str]:
        """What the masks mark."""
        return self.source.kinds

    def prepare(
        self, position: int, preprocess: Preprocessing
    ) -> tuple[Float[Tensor, "3 crop crop"], dict[str, Float[Tensor, "crop crop"]]]:
        """Return an image as the encoder wants it, and its masks after the same resizing and cropping, by kind.

        Kinds that an image has no mask of, or of which the crop shows nothing or nothing else, are missing.

        Parameters
        ----------
        position : int
            One of ``positions``.
        preprocess : Preprocessing
            The encoder's.

        Raises
        ------
        QScoreError
            If image or mask cannot be read, their sizes differ, or the mask is none.
        """
        record = self.images.record(position)
        image = self.images.image(position)
        masks = self.source.read(record)
        return place_masks(image, masks, preprocess, frame=self.source.frame, name=record.id)


def open_masks(source: str | Path, images: ImageSource) -> Masks:
    """Open a source of masks, and match it to images.

    Parameters
    ----------
    source : str or Path
        A folder of masks, matched by their paths without the ending, or else by their names without it; an ``.npz``
        archive with ``mask_data`` and ``mask_offsets``, matched by ``ids``; the folder of Salient ImageNet; or
        ``"shapes"``, where the images are drawn shapes.
    images : ImageSource
        The images, as `open_images` opens them.

    Raises
    ------
    QScoreError
        If there is no such source, an image has no mask, or a mask no image or two (of Salient ImageNet: if no image
        has any).
    """
    name = str(source)
    found = _open(name)
    records = [images.record(i) for i in range(len(images))]
    positions = [i for i, record in enumerate(records) if found.find(record)]
    unused = found.unused([records[i] for i in positions])
    if not positions:
        raise QScoreError(
            f"{name}: none of the {len(records):,} images in {images.name} has a mask here; the first image is "
            f"{records[0].id!r}"
        )
    if unused is not None and len(positions) < len(records):
        has = set(positions)
        first = next(record.id for i, record in enumerate(records) if i not in has)
        raise QScoreError(
            f"{images.name}: {len(records) - len(positions):,} of {len(records):,} images have no mask in {name}, the "
            f"first is {first!r}; add it, or leave these images out"
        )
    if unused:
        count = "1 mask has" if len(unused) == 1 else f"{len(unused):,} masks have"
        raise QScoreError(
            f"{name}: {count} no image in {images.name}, the first is {unused[0]!r}; add it, or leave the mask out"
        )
    return Masks(found, images, positions)


def _open(name: str) -> MaskSource:
    if name.partition(":")[0] == "shapes":
        return ShapesMasks(name)
    if name.lower().endswith(".npz"):
        return ArchiveMasks(name)
    if is_salient(name):
        return SalientMasks(name)
    if Path(name).is_dir():
        return FolderMasks(name)
    found = "a file" if Path(name).is_file() else "no such file or folder"
    raise QScoreError(
        f"masks {name!r}: expected a folder of masks, an .npz archive, the folder of Salient ImageNet, or 'shapes'; "
        f"got {found}"
    )


@final
class FolderMasks:
    """A folder of grey masks, in [0, 1] after division by 255: object, and what is left, background.

    Where the folder is laid out as the images are, masks are matched by their paths without the ending, otherwise by
    their names without it.

    Parameters
    ----------
    name : str
        The folder.

    Raises
    ------
    QScoreError
        If it has no masks, or two of one name.
    """

    kinds = OBJECT
    frame = None

    def __init__(self, name: str) -> None:
        self.name = name
        folder = FolderSource(name)
        self._paths: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = {}
        for record in (folder.record(i) for i in range(len(folder))):
            stem = _without_ending(record.id)
            if stem in self._paths:
                first = self._paths[stem]
                raise QScoreError(f"{name}: expected one mask named {stem!r}, got {first!r} and {record.path!r}")
            self._paths[stem] = record.path
            self._by_name.setdefault(stem.rpartition("/")[2], []).append(stem)

    def find(self, record: ImageRecord) -> bool:
        """Tell whether an image has a mask."""
        return self._stem(record) is not None

    def unused(self, records: Sequence[ImageRecord]) -> list[str]:
        """Return the masks that belong to no image.

        Raises
        ------
        QScoreError
            If a mask belongs to two images.
        """
        used: dict[str | None, str] = {}
        for record in records:
            stem = self._stem(record)
            if stem in used:
                raise QScoreError(
                    f"{self.name}: expected one image for each mask, got {used[stem]!r} and {record.id!r} for "
                    f"{self._paths[stem or '']!r}; add the mask that is missing, or lay the folder out as the images "
                    "are"
                )
            used[stem] = record.id
        return [path for stem, path in self._paths.items() if stem not in used]

    def read(self, record: ImageRecord) -> dict[str, Float[np.ndarray, "h w"]]:
        """Return an image's masks in [0, 1], by kind."""
        path = self._paths[self._stem(record) or ""]
        return complement(read_mask(read_bytes(path), path))

    def _stem(self, record: ImageRecord) -> str | None:
        path = _without_ending(record.id)
        if path in self._paths:
            return path
        alike = self._by_name.get(path.rpartition("/")[2], [])
        if len(alike) > 1:
            raise QScoreError(
                f"{self.name}: expected one mask for the image {record.id!r}, got {alike[0]!r} and {alike[1]!r}; lay "
                "the folder out as the images are"
            )
        return alike[0] if alike else None


def _without_ending(id: str) -> str:
    stem, _, ending = id.rpartition(".")
    return stem if ending.lower() in EXTENSIONS else id


@final
class ArchiveMasks:
    """The masks of an ``.npz`` archive with ``mask_data``, ``mask_offsets`` and ``ids``: object and background.

    Parameters
    ----------
    name : str
        The file.

    Raises
    ------
    QScoreError
        If it has no masks.
    """

    kinds = OBJECT
    frame = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._archive = ArchiveSource(name, prefixes=("mask_",))
        self._positions = {self._archive.record(i).id: i for i in range(len(self._archive))}

    def find(self, record: ImageRecord) -> bool:
        """Tell whether an image has a mask."""
        return record.id in self._positions

    def unused(self, records: Sequence[ImageRecord]) -> list[str]:
        """Return the masks that belong to no image."""
        used = {record.id for record in records}
        return [id for id in self._positions if id not in used]

    def read(self, record: ImageRecord) -> dict[str, Float[np.ndarray, "h w"]]:
        """Return an image's masks in [0, 1], by kind."""
        data = self._archive.encoded(self._positions[record.id])
        return complement(read_mask(data, f"{self.name}, mask of {record.id!r}"))


@final
class ShapesMasks:
    """The exact masks of drawn shapes: core, the shape itself, and spurious, the background.

    Parameters
    ----------
    name : str
        ``"shapes"``; the images' own locators say which.
    """

    kinds = ("core", "spurious")
    frame = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._opened: dict[str, ShapesSource] = {}

    def find(self, record: ImageRecord) -> bool:
        """Tell whether an image is one of drawn shapes."""
        return record.path.partition("#")[0].partition(":")[0] == "shapes"

    def unused(self, records: Sequence[ImageRecord]) -> list[str]:
        """Return nothing: masks are drawn for the images that there are."""
        return []

    def read(self, record: ImageRecord) -> dict[str, Float[np.ndarray, "h w"]]:
        """Return an image's masks, by kind."""
        container, _, position = record.path.rpartition("#")
        if container not in self._opened:
            self._opened[container] = ShapesSource(container)
        source = self._opened[container]
        return {kind: mask.astype(np.float32) for kind, mask in source.masks(int(position)).items()}
