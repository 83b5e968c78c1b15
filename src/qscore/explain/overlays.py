"""A heatmap laid over the image as the encoder saw it."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from qscore.encoders import Preprocessing

__all__ = ["colours", "enlarge_heat", "enlarge_image", "overlay", "seen"]

# Plasma of Smith and van der Walt (CC0), whose lightness rises evenly, without its darkest part: over a photograph
# dark colours are taken for shadows.
PLASMA = np.array(
    [
        *[(102, 0, 167), (126, 3, 168), (149, 17, 161), (170, 35, 149), (188, 53, 135), (204, 71, 120), (218, 90, 106)],
        *[(230, 108, 92), (240, 128, 78), (248, 149, 64), (253, 172, 51), (253, 197, 39), (248, 223, 37)],
        (240, 249, 33),
    ],
    dtype=np.float64,
)
FADE = 1.5  # above 1 leaves more of the image where there is some heat
LEAST_PIXEL = 3  # times: pixels enlarged by this or more are shown as squares, which is what there is to see


def colours(share: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the colours of values in [0, 1]: violet over red to yellow, lighter throughout."""
    at = np.clip(share, 0, 1) * (len(PLASMA) - 1)
    channels = [np.interp(at, np.arange(len(PLASMA)), channel) for channel in PLASMA.T]
    return np.stack(channels, -1).round().astype(np.uint8)


def overlay(
    image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "h w"], top: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Lay a heatmap over an image: the more heat, the more colour and the less image.

    Parameters
    ----------
    image : ndarray of uint8, shape (h, w, 3)
        Red, green and blue.
    heat : ndarray of float, shape (h, w)
        Values >= 0.
    top : float
        What has the lightest colour, and hides the image; where heat is 0 the image is left as it is. With a ``top``
        of 0 it is left everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> grey = np.full((1, 3, 3), 128, np.uint8)
    >>> overlay(grey, np.array([[0.0, 1.0, 2.0]]), 2.0).tolist()
    [[[128, 128, 128], [162, 118, 118], [240, 249, 33]]]
    """
    share = np.clip(heat / top, 0, 1) if top > 0 else np.zeros(heat.shape)
    opacity = share[..., None] ** FADE
    mixed: UInt8[np.ndarray, "h w 3"] = ((1 - opacity) * image + opacity * colours(share)).round().astype(np.uint8)
    return mixed


def seen(x: Float[Tensor, "3 h w"], preprocess: Preprocessing) -> UInt8[np.ndarray, "h w 3"]:
    """Turn an encoder's input back into the image that it shows: cropped and resized, its colours as they were."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    pixels = ((x.detach().cpu().float() * std + mean) * 255).round().clamp(0, 255)
    found: UInt8[np.ndarray, "h w 3"] = pixels.to(torch.uint8).permute(1, 2, 0).numpy()
    return found


def enlarge_image(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Bring a square image to another size; pixels of small ones become squares."""
    squares = side >= LEAST_PIXEL * len(image)
    kind = Image.Resampling.NEAREST if squares else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((side, side), kind))


def enlarge_heat(heat: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "side side"]:
    """Bring a square heatmap to another size, bilinearly; it stays >= 0."""
    resized = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(min=0)
