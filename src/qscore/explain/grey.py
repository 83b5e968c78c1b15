"""A mask out of an image file: grey values, and nothing that could be read two ways."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from qscore._validate import QScoreError
from qscore.images.decode import decode_image

__all__ = ["check_mask", "complement", "read_mask"]

AT = 0.5


def read_mask(data: bytes, name: str, *, check: bool = True) -> Float[np.ndarray, "h w"]:
    """Decode a mask: grey, one bit, or colours that are all grey; 8 or 16 bits, scaled to [0, 1].

    Parameters
    ----------
    data : bytes
        The file's content.
    name : str
        Where it came from, for messages.
    check : bool, default=True
        Refuse a mask that marks nothing or everything.

    Raises
    ------
    QScoreError
        If the file is no image, has colours or transparent pixels, or marks nothing or everything at 0.5.
    """
    image = decode_image(data, name, convert=Image.Image.copy)
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise QScoreError(
            f"{name}: expected a mask in grey, got one with transparent pixels (mode {image.mode}); save what is "
            "marked in white on black, without transparency"
        )
    mask = _grey(image, name)
    if check:
        check_mask(mask, name)
    return mask


def _grey(image: Image.Image, name: str) -> Float[np.ndarray, "h w"]:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64) / 65535
    elif image.mode == "F":
        values = np.asarray(image, np.float64)
    else:
        channels = np.asarray(image.convert("RGB"))
        if (channels != channels[..., :1]).any():
            raise QScoreError(
                f"{name}: expected a mask in grey, got one in colours (mode {image.mode}); save what is marked in "
                "white on black"
            )
        values = channels[..., 0] / 255
    if not (values >= 0).all() or not (values <= 1).all():
        raise QScoreError(f"{name}: expected a mask of 8 or 16 bits, or of values from 0 to 1, got others")
    mask: Float[np.ndarray, "h w"] = values.astype(np.float32)
    return mask


def check_mask(mask: Float[np.ndarray, "h w"], name: str) -> None:
    """Refuse a mask that marks no pixel, or all, at 0.5.

    Raises
    ------
    QScoreError
        Saying which.
    """
    if (mask < AT).all():
        largest = round(float(mask.max()) * 255)
        hint = f": its largest value is {largest} of 255; multiply it by {255 // largest}" if 0 < largest < 128 else ""
        raise QScoreError(f"{name}: expected a mask that marks something, got an empty one{hint or '; leave it out'}")
    if (mask >= AT).all():
        raise QScoreError(f"{name}: expected a mask that leaves something out, got one that marks every pixel")


def complement(mask: Float[np.ndarray, "h w"]) -> dict[str, Float[np.ndarray, "h w"]]:
    """Return an object's mask and its background's."""
    return {"object": mask, "background": 1 - mask}
