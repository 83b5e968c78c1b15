"""From the bytes of one image file, of whatever kind, to upright 8-bit RGB."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qscore._validate import QScoreError

__all__ = ["decode_image", "read_image"]


def read_image(path: Path) -> Image.Image:
    """Read an image file as upright RGB.

    Raises
    ------
    QScoreError
        If the file cannot be read or is no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise QScoreError(f"{path}: cannot read the image: {error.strerror or error}") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file held in memory as upright RGB.

    EXIF orientation is applied, transparent pixels are laid over white, 16-bit greyscale is scaled to 8 bits, and
    of an animation the first frame is taken.

    Parameters
    ----------
    data : bytes
        The file's content.
    name : str
        Where it came from, for messages.

    Raises
    ------
    QScoreError
        If the bytes are no image, are damaged, or would decode to more pixels than Pillow's safety limit.
    """
    if not data:
        raise QScoreError(f"{name}: expected an image, got an empty file; delete it or fetch it again")
    try:
        with warnings.catch_warnings():
            # Remarks about odd metadata are of no use here: the pixels decide. Size is the exception.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise QScoreError(
            f"{name}: the image has more than {Image.MAX_IMAGE_PIXELS:,} pixels and may be a decompression bomb; "
            "shrink it, or leave it out"
        ) from error
    except UnidentifiedImageError as error:
        raise QScoreError(f"{name}: expected an image, got a file of no known image format; leave it out") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise QScoreError(f"{name}: the image is damaged ({error}); delete it or fetch it again") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _eight_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range, save it with 8 or 16 bits")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit greyscale, which Pillow holds in modes ``I;16`` and ``I`` and would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no agreed range, save it with 8 or 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
