"""Training images as 8-bit batches: decoded once where they fit in memory, else anew in every epoch."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from qscore._progress import progress
from qscore.encoders import Preprocessing
from qscore.images import ImageSource, open_image
from qscore.tables.ahead import read_ahead

__all__ = ["PixelBatches"]

MEMORY_LIMIT = 8 * 2**30  # bytes of pixels
DECODE_AHEAD = 256  # images per round of decoding, so that a bad one is reported at once


@final
class PixelBatches:
    """Images as an encoder wants them, but for the normalisation: resized, cropped, 8 bits.

    Parameters
    ----------
    images : sequence of str, or ImageSource
        Locators that :func:`~qscore.images.open_image` understands, or an open source.
    rows : ndarray of int, shape (n,)
        Which of them are wanted.
    preprocess : Preprocessing
        The encoder's; its mean and standard deviation are not applied.
    workers : int
        Threads that decode.

    Raises
    ------
    QScoreError
        If an image cannot be read.
    """

    def __init__(
        self,
        images: Sequence[str] | ImageSource,
        rows: Integer[np.ndarray, " n"],
        preprocess: Preprocessing,
        workers: int,
    ) -> None:
        self._images = images
        self._rows = rows
        self._preprocess = replace(preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._workers = workers
        side = preprocess.crop
        self._held: Tensor | None = None
        if len(rows) * 3 * side * side <= MEMORY_LIMIT:
            self._held = self._load(side)

    def image(self, place: int) -> Image.Image:
        """Return a wanted image as it is."""
        row = int(self._rows[place])
        return open_image(self._images[row]) if isinstance(self._images, Sequence) else self._images.image(row)

    def batches(self, batches: Iterable[Integer[np.ndarray, " b"]]) -> Generator[UInt8[Tensor, "b 3 h w"], None, None]:
        """Give the wanted images at some places, batch by batch; decoded ahead in threads where they are not held."""
        if self._held is None:
            decoded = (partial(self._decoded, places) for places in batches)
            yield from read_ahead(decoded, threads=self._workers, depth=1)
            return
        for places in batches:
            yield self._held[torch.from_numpy(places)]

    def _load(self, side: int) -> Tensor:
        n = len(self._rows)
        pixels = torch.empty(n, 3, side, side, dtype=torch.uint8)
        with ThreadPoolExecutor(self._workers) as pool, progress("read images", n, "images") as advance:
            for start in range(0, n, DECODE_AHEAD):
                places = range(start, min(start + DECODE_AHEAD, n))
                for place, image in zip(places, pool.map(self._pixels, places), strict=True):
                    pixels[place] = image
                advance(len(places))
        return pixels

    def _decoded(self, places: Integer[np.ndarray, " b"]) -> Iterator[Tensor]:
        yield torch.stack([self._pixels(int(place)) for place in places])

    def _pixels(self, place: int) -> Tensor:
        return (self._preprocess(self.image(place)) * 255).round().to(torch.uint8)
