"""From the bytes of one image file, of whatever kind, to upright 8-bit RGB."""

import io
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qscore._validate import QScoreError, one_line
from qscore.images.files import read_bytes

__all__ = ["decode_image", "read_image", "to_rgb"]

# Not all that Pillow knows: some formats run other programs (EPS calls Ghostscript), some recognise nearly anything.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")


def read_image(path: str | Path) -> Image.Image:
    """Read an image file, local or in an object store, as upright RGB.

    Raises
    ------
    QScoreError
        If the file cannot be read or is no image.
    StoreError
        If the disk or the store fails, whatever the file.
    """
    return decode_image(read_bytes(str(path)), str(path))


def decode_image(data: bytes, name: str, convert: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """Decode an image file held in memory as upright RGB.

    EXIF orientation is applied, transparent pixels are laid over white, 16 bits are scaled to 8, and of an animation
    or of several pages the first is taken.

    Parameters
    ----------
    data : bytes
        The file's content.
    name : str
        Where it came from, for messages.
    convert : callable, optional
        What makes the result out of the upright image, by default `to_rgb`.

    Raises
    ------
    QScoreError
        If the bytes are no image, are damaged, or would decode to more pixels than Pillow's safety limit.
    """
    if not data:
        raise QScoreError(f"{name}: expected an image, got an empty file; delete it or fetch it again")
    try:
        with _quiet, Image.open(io.BytesIO(data), formats=_formats()) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return (convert or to_rgb)(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise QScoreError(
            f"{name}: the image has more than {Image.MAX_IMAGE_PIXELS:,} pixels and may be a decompression bomb; "
            "shrink it, or leave it out"
        ) from error
    except UnidentifiedImageError as error:
        raise QScoreError(f"{name}: expected an image, got a file of no known image format; leave it out") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise QScoreError(f"{name}: the image is damaged ({one_line(error)}); delete it or fetch it again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as 8-bit RGB, transparent pixels laid over white.

    Raises
    ------
    ValueError
        If the pixels have no agreed range or colours.
    """
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
    grey = np.round(values / 257).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow was built with."""
    Image.init()
    return tuple(format for format in FORMATS if format in Image.OPEN)


@final
class _Quiet:
    """Silences remarks about odd metadata, since the pixels decide, and makes that on an image's size an error.

    Warning filters belong to the process: threads that save and restore them each on their own would leave those of
    another thread behind. So the first to come sets them, and the last to go restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()
