"""Training images in memory, and every random choice as a function of seed, epoch, step and process."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.encoders import Preprocessing
from qscore.images import ImageSource

__all__ = ["batch_rows", "channel_statistics", "load_pixels", "mixed_seed"]

MEMORY_LIMIT = 8 * 2**30  # bytes of pixels held on the training device
DECODE_AHEAD = 256  # images per round of decoding, so that a bad one is reported at once

Triple = tuple[float, float, float]


def load_pixels(source: ImageSource, size: int, workers: int) -> UInt8[Tensor, "n 3 size size"]:
    """Decode all images once, the shorter side resized to ``size`` pixels and the centre cropped.

    Parameters
    ----------
    source : ImageSource
        The images.
    size : int
        Side in pixels.
    workers : int
        Threads that decode.

    Raises
    ------
    QScoreError
        If the images do not fit in memory, or one cannot be read.
    """
    needed = len(source) * 3 * size * size
    if needed > MEMORY_LIMIT:
        raise QScoreError(
            f"{source.name}: {len(source):,} images of {size} x {size} pixels take {needed / 2**30:,.1f} GiB, "
            f"but at most {MEMORY_LIMIT / 2**30:g} GiB are held in memory; train on fewer or smaller images"
        )
    prepare = Preprocessing(crop=size, resize=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def decode(index: int) -> Tensor:
        image = source.image(index)
        if image.size == (size, size):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return (prepare(image) * 255).round().to(torch.uint8)

    pixels = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    with (
        ThreadPoolExecutor(workers) as pool,
        progress("read images", len(source), "images") as advance,
    ):
        for start in range(0, len(source), DECODE_AHEAD):
            indices = range(start, min(start + DECODE_AHEAD, len(source)))
            for index, image in zip(indices, pool.map(decode, indices), strict=True):
                pixels[index] = image
            advance(len(indices))
    return pixels


def channel_statistics(pixels: UInt8[Tensor, "n 3 h w"]) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of red, green and blue in [0, 1], to four decimals."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in pixels.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean = (share * values).sum()
        std = (share * (values - mean) ** 2).sum().sqrt()
        means.append(round(mean.item(), 4))
        stds.append(max(round(std.item(), 4), 1e-2))  # a constant channel has none
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def batch_rows(n: int, seed: int, epoch: int, batch: int, batch_size: int, rank: int, world_size: int) -> Tensor:
    """Return the rows of a batch that are this process's share; every epoch has another order.

    Parameters
    ----------
    n : int
        Number of images.
    seed, epoch, batch : int
        Which batch of which epoch.
    batch_size : int
        Images per batch over all processes.
    rank, world_size : int
        Which process of how many.
    """
    return epoch_order(n, seed, epoch)[batch * batch_size : (batch + 1) * batch_size][rank::world_size]


@lru_cache(maxsize=1)
def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the images in an epoch."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, epoch)))
    return torch.from_numpy(generator.permutation(n))


def mixed_seed(seed: int, *place: int) -> int:
    """Return a seed of 64 bits for a place such as (epoch, step, rank), unlike that of any other place."""
    return int(np.random.SeedSequence(seed, spawn_key=(1, *place)).generate_state(1, np.uint64)[0])
