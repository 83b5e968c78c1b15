"""Random views of a batch of images, made on whatever device the batch is on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, UInt8
from kornia.augmentation import (
    ColorJitter,
    Normalize,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
)
from torch import Tensor, nn

from qscore._validate import QScoreError

__all__ = ["Augmentation", "Augmenter"]


@dataclass(frozen=True)
class Augmentation:
    """How a random view of an image is made, step by step; by default SimCLR's recipe for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, appendix A.
    """

    size: int = 224
    """Side of the views in pixels, at least 4."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area of the random crop, as a fraction of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over its height."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of the four colour changes that follow, in random order."""
    brightness: float = 0.8
    """The pixels are multiplied by 1 - brightness (not below 0) to 1 + brightness."""
    contrast: float = 0.8
    """The same factors, about the image's mean grey."""
    saturation: float = 0.8
    """The same factors, about the pixel's grey."""
    hue: float = 0.2
    """The hue is turned by up to this fraction of the colour circle, either way; 0 to 0.5."""
    grayscale: float = 0.2
    """Probability that the colours are lost."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels."""
    solarize: float = 0.0
    """Probability that pixels above one half are inverted."""
    kernel: float = 0.1
    """Side of the blur's kernel as a fraction of the view's; above 0, at most 1."""

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 4096:
            raise QScoreError(f"augmentation: expected size from 4 to 4096 pixels, got {self.size}")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            _check(name, getattr(self, name), upper=1.0)
        for name in ("brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), upper=float("inf"))
        _check("hue", self.hue, upper=0.5)
        if not 0 < self.kernel <= 1:
            raise QScoreError(f"augmentation: expected kernel above 0, at most 1, got {self.kernel}")
        for name, upper in (("scale", 1.0), ("ratio", float("inf")), ("sigma", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= upper:
                raise QScoreError(
                    f"augmentation: expected {name} to be two numbers, 0 < low <= high <= {upper:g}, got {low}, {high}"
                )


@final
class Augmenter(nn.Module):
    """Makes one random view of each image of a batch; its randomness is torch's global generator alone.

    Parameters
    ----------
    augmentation : Augmentation
        What to do; steps that never happen cost nothing.
    mean, std : tuple of three floats
        The views' red, green and blue in [0, 1] have ``mean`` subtracted and are divided by ``std``.

    Examples
    --------
    >>> import torch
    >>> augmenter = Augmenter(Augmentation(size=8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> augmenter(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        augmentation: Augmentation,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.steps = nn.Sequential(*_steps(augmentation), Normalize(torch.tensor(mean), torch.tensor(std)))

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 size size"]:
        """Return one normalised view of each image, in float32 whatever the surrounding precision."""
        with torch.autocast(images.device.type, enabled=False):  # in half precision, hues drift visibly
            views: Tensor = self.steps(images.float() / 255)
        return views


def _steps(a: Augmentation) -> list[nn.Module]:
    # Resampling crops the whole batch at once; kornia's default slices image by image, one kernel launch each.
    crop = RandomResizedCrop((a.size, a.size), a.scale, a.ratio, cropping_mode="resample")
    changes = (a.brightness, a.contrast, a.saturation, a.hue)
    kernel = max(int(a.kernel * a.size) // 2 * 2 + 1, 3)  # odd
    optional: list[tuple[float, Callable[[], nn.Module]]] = [
        (a.flip, lambda: RandomHorizontalFlip(p=a.flip)),
        (a.jitter * any(changes), lambda: ColorJitter(*changes, p=a.jitter)),
        (a.grayscale, lambda: RandomGrayscale(p=a.grayscale)),
        (a.blur, lambda: RandomGaussianBlur((kernel, kernel), a.sigma, p=a.blur)),
        (a.solarize, lambda: RandomSolarize((0.5, 0.5), (0.0, 0.0), p=a.solarize)),
    ]
    return [crop, *(make() for probability, make in optional if probability > 0)]


def _check(name: str, value: float, *, upper: float) -> None:
    if not 0 <= value <= upper:
        raise QScoreError(f"augmentation: expected {name} from 0 to {upper:g}, got {value}")
