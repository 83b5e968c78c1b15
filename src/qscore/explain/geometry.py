"""From an image's own pixels to the encoder's, the same way for the image and for its masks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from qscore._validate import QScoreError
from qscore.encoders import Preprocessing

__all__ = ["place_mask", "place_masks", "upsample"]

Size = tuple[int, int]  # width and height in pixels


def upsample(maps: Float[Tensor, "b k rows columns"], size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
    """Cut maps at 0 and enlarge them to ``size`` = (h, w), bilinearly with ``align_corners=False``."""
    maps = maps.relu()
    if tuple(maps.shape[2:]) == size or maps.shape[1] == 0:
        return maps if maps.shape[1] else maps.new_empty(len(maps), 0, *size)
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def place_masks(
    image: Image.Image,
    masks: Mapping[str, Float[np.ndarray, "h w"]],
    preprocess: Preprocessing,
    *,
    frame: Preprocessing | None = None,
    name: str = "the mask",
) -> tuple[Float[Tensor, "3 crop crop"], dict[str, Float[Tensor, "crop crop"]]]:
    """Prepare an image for an encoder, and put its masks through the same resizing and cropping.

    Parameters
    ----------
    image : PIL image
        As its source gives it.
    masks : mapping of str to ndarray of shape (h, w)
        Masks by kind, in [0, 1].
    preprocess : Preprocessing
        The encoder's.
    frame : Preprocessing, optional
        What a mask of its size, which is not the image's, went through already. All others are in the image's own
        pixels.
    name : str
        The image's id, for messages.

    Returns
    -------
    tuple of Tensor and dict
        The encoder's input, and the masks in [0, 1] by kind. Kinds of which the crop shows nothing, or nothing else,
        at 0.5, are missing.

    Raises
    ------
    QScoreError
        If a mask has another size than its image.
    """
    placed = {
        kind: place_mask(mask, image.size, preprocess, frame=frame, name=f"{name}, {kind}")
        for kind, mask in masks.items()
    }
    marked = {kind: (mask >= 0.5).float().mean().item() for kind, mask in placed.items()}
    return preprocess(image), {kind: mask for kind, mask in placed.items() if 0 < marked[kind] < 1}


def place_mask(
    mask: Float[np.ndarray, "h w"],
    image_size: Size,
    preprocess: Preprocessing,
    *,
    frame: Preprocessing | None = None,
    name: str = "the mask",
) -> Float[Tensor, "crop crop"]:
    """Put one mask through an encoder's resizing and cropping, once.

    Areas are averaged; nothing is marked where the crop reaches beyond the image.

    Parameters
    ----------
    mask : ndarray of shape (h, w)
        In [0, 1].
    image_size : tuple of int
        The image's width and height.
    preprocess : Preprocessing
        The encoder's.
    frame : Preprocessing, optional
        What a mask of its size, which is not the image's, went through already.
    name : str
        For messages.

    Raises
    ------
    QScoreError
        If the mask has another size than its image.
    """
    height, width = mask.shape
    if (width, height) != image_size:
        if frame is not None and (width, height) == (frame.crop, frame.crop):
            return _reframe(mask, image_size, frame, preprocess)
        raise QScoreError(
            f"{name}: expected a mask of the image's size, {image_size[0]} x {image_size[1]} pixels, got {width} x "
            f"{height}; resize neither: a mask goes through the encoder's geometry with its image"
        )
    geometry = replace(preprocess, interpolation="box", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return geometry(Image.fromarray(_eight_bits(mask)).convert("RGB"))[0]


def _reframe(mask: Float[np.ndarray, "h w"], size: Size, frame: Preprocessing, wanted: Preprocessing) -> Tensor:
    """Cut a mask that lies in one crop of its image to another crop, in a single resampling."""
    corners = []
    for there, here in zip(_crop_line(size, wanted), _crop_line(size, frame), strict=True):
        scale = here.length / there.length
        corners.append((there.begin * scale - here.begin, (there.begin + wanted.crop) * scale - here.begin))
    (left, right), (top, bottom) = corners
    if (left, top, right, bottom) == (0, 0, frame.crop, frame.crop) and wanted.crop == frame.crop:
        return torch.from_numpy(mask.astype(np.float32))
    cut = Image.fromarray(mask.astype(np.float32)).transform(
        (wanted.crop, wanted.crop), Image.Transform.EXTENT, (left, top, right, bottom), Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.array(cut))


class _Line(NamedTuple):
    """One side of an image."""

    length: int
    """In pixels, after resizing."""
    begin: int
    """The crop's first pixel; below 0 where the image is smaller, and padded."""


def _crop_line(size: Size, preprocess: Preprocessing) -> tuple[_Line, _Line]:
    """Return what happens to an image's width and to its height."""
    side, shorter = preprocess.resize, min(size)

    def resized(length: int) -> int:
        if side is None:
            return length
        return side if preprocess.squash or length == shorter else int(side * length / shorter)

    width, height = (
        _Line(length, round(margin / 2) if margin >= 0 else -(-margin // 2))
        for length in map(resized, size)
        for margin in (length - preprocess.crop,)
    )
    return width, height


def _eight_bits(mask: Float[np.ndarray, "h w"]) -> np.ndarray:
    return np.round(np.asarray(mask, np.float32) * 255).astype(np.uint8)
