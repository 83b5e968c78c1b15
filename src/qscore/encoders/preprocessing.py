"""From an image of any size to the tensor an encoder expects, as a record that can be stored."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from qscore._validate import QScoreError, nearest

__all__ = ["Preprocessing"]

Triple = tuple[float, float, float]
LARGEST_SIDE = 4096
INTERPOLATIONS = tuple(mode.value for mode in InterpolationMode)
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "zero-one": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "minus-one-one": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], normalise; every image comes out with the same size.

    Raises
    ------
    QScoreError
        If a value is of another type or outside its range.

    Examples
    --------
    >>> from PIL import Image
    >>> Preprocessing(crop=32, resize=36)(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 32, 32])
    """

    crop: int
    """Side of the centre crop in pixels, 1 to 4096: the size of the result. A smaller image is padded with black."""
    resize: int | None = None
    """Length of the shorter side before the crop in pixels, 1 to 4096; None leaves the image as it is."""
    squash: bool = False
    """Whether both sides are resized to ``resize``, whatever the aspect ratio."""
    interpolation: str = "bilinear"
    """Filter of the resizing, always antialiased: ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ..."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue in [0, 1]; by default ImageNet's."""
    std: Triple = (0.229, 0.224, 0.225)
    """Red, green and blue are divided by it; positive; by default ImageNet's."""

    def __post_init__(self) -> None:
        _check_side("crop", self.crop)
        if self.resize is not None:
            _check_side("resize", self.resize)
        if not isinstance(self.squash, bool):
            raise QScoreError(f"preprocessing: expected squash to be true or false, got {self.squash!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise QScoreError(
                f"preprocessing: expected interpolation to be one of {', '.join(INTERPOLATIONS)}, "
                f"got {self.interpolation!r}{nearest(str(self.interpolation), INTERPOLATIONS)}"
            )
        object.__setattr__(self, "mean", _triple("mean", self.mean))
        object.__setattr__(self, "std", _triple("std", self.std))
        if min(self.std) <= 0:
            raise QScoreError(f"preprocessing: expected std above 0, got {self.std}")

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn a PIL image into a float32 tensor of shape (3, crop, crop).

        Raises
        ------
        QScoreError
            If the image is so elongated that resizing it would not fit in memory.
        """
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if self.resize is not None:
            rgb = self._resize(rgb, self.resize)
        rgb = functional.center_crop(rgb, [self.crop, self.crop])
        # Not transforms.v2, which multiplies by 1 / 255 where published encoders were given a division.
        x = functional.convert_image_dtype(functional.pil_to_tensor(rgb), torch.float32)  # (3, crop, crop)
        normalised: Tensor = functional.normalize(x, list(self.mean), list(self.std))
        return normalised

    def _resize(self, image: Image.Image, side: int) -> Image.Image:
        shorter, longer = sorted(image.size)
        pixels = side * side * (1 if self.squash else longer / shorter)
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise QScoreError(
                f"an image of {image.width} x {image.height} pixels is too elongated: with its shorter side resized to "
                f"{side} it would have {pixels:,.0f} pixels; crop it, or leave it out"
            )
        size = [side, side] if self.squash else [side]
        resized: Image.Image = functional.resize(image, size, InterpolationMode(self.interpolation))
        return resized

    def overruled(self, by: "Preprocessing | str | None") -> "Preprocessing":
        """Return what a caller wants in its place: another, this one with a mean and std that has a name, or this.

        Raises
        ------
        QScoreError
            If the name is none of ``imagenet``, ``cifar``, ``zero-one`` and ``minus-one-one``.
        """
        if not isinstance(by, str):
            return by or self
        if by not in NORMALISATIONS:
            names = ", ".join(NORMALISATIONS)
            raise QScoreError(
                f"preprocessing {by!r}: expected a Preprocessing or one of {names}{nearest(by, NORMALISATIONS)}"
            )
        mean, std = NORMALISATIONS[by]
        return replace(self, mean=mean, std=std)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: Any) -> "Preprocessing":
        """Make one from the fields that `to_json` returned.

        Raises
        ------
        QScoreError
            If a field is missing, unknown, or of a wrong value.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != names:
            raise QScoreError(f"preprocessing: expected exactly the fields {', '.join(sorted(names))}, got {record!r}")
        return cls(**record)


def _check_side(name: str, side: Any) -> None:
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE:
        raise QScoreError(f"preprocessing: expected {name} to be an integer from 1 to {LARGEST_SIDE}, got {side!r}")


def _triple(name: str, values: Any) -> Triple:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise QScoreError(f"preprocessing: expected {name} to be three numbers, got {values!r}") from error
    if not all(map(math.isfinite, (red, green, blue))):
        raise QScoreError(f"preprocessing: expected {name} to be three finite numbers, got {values!r}")
    return red, green, blue
