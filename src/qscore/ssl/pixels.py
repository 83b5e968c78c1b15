"""Training images in memory, and every random choice as a function of seed, epoch, step and process."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.encoders import Preprocessing
from qscore.images import ImageSource
from qscore.images.augment import Augmentation, Augmenter

__all__ = [
    "InMemory",
    "Share",
    "Triple",
    "channel_statistics",
    "load_pixels",
    "memory_limit",
    "mixed_seed",
    "pixel_bytes",
]

HOST_SHARE, DEVICE_SHARE = 1 / 2, 1 / 4  # of all memory that pixels may take; a GPU's is needed for activations
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
DECODE_AHEAD = 256  # images per round of decoding, so that a bad one is reported at once

Triple = tuple[float, float, float]


def memory_limit(device: torch.device, processes: int) -> int:
    """Return how many bytes of pixels each process may hold: in the machine's memory, and on its own GPU.

    Parameters
    ----------
    device : torch.device
        Where the training runs.
    processes : int
        Processes on this machine that each hold all images.
    """
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CGROUP_LIMIT.exists() and (allowed := CGROUP_LIMIT.read_text().strip()).isdecimal():
        host = min(host, int(allowed))
    limit = host * HOST_SHARE / processes
    if device.type == "cuda":
        limit = min(limit, torch.cuda.get_device_properties(device).total_memory * DEVICE_SHARE)
    return int(limit)


def pixel_bytes(n: int, size: int) -> int:
    """Return what ``n`` images of ``size`` x ``size`` pixels take."""
    return n * 3 * size * size


def load_pixels(
    source: ImageSource, size: int, workers: int, limit: int | None = None
) -> UInt8[Tensor, "n 3 size size"]:
    """Decode all images once, the shorter side resized to ``size`` pixels and the centre cropped.

    Parameters
    ----------
    source : ImageSource
        The images.
    size : int
        Side in pixels.
    workers : int
        Threads that decode.
    limit : int or None
        Most bytes that may be taken.

    Raises
    ------
    QScoreError
        If the images take more, or one cannot be read.
    """
    needed = pixel_bytes(len(source), size)
    if limit is not None and needed > limit:
        raise QScoreError(
            f"{source.name}: {len(source):,} images of {size} x {size} pixels take {needed / 2**30:,.1f} GiB, "
            f"but at most {limit / 2**30:,.1f} GiB are held in memory; stream them, or train on fewer or smaller images"
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


@dataclass(frozen=True)
class Share:
    """Which images make up each micro-batch of a process; every epoch has another order."""

    n: int
    """Number of images."""
    seed: int
    """Of the order."""
    size: int
    """Images of a micro-batch over all processes."""
    batches: int
    """Micro-batches of an epoch; images left over wait for another epoch."""
    epochs: int
    """Passes over the images."""
    rank: int = 0
    """Which process this is."""
    world: int = 1
    """Of how many."""

    def rows(self, epoch: int, batch: int) -> Tensor:
        """Return the images of a micro-batch that are this process's."""
        order = epoch_order(self.n, self.seed, epoch)
        return order[batch * self.size : (batch + 1) * self.size][self.rank :: self.world]


@lru_cache(maxsize=1)
def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the images in an epoch."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, epoch)))
    return torch.from_numpy(generator.permutation(n))


def mixed_seed(seed: int, *place: int) -> int:
    """Return a seed of 64 bits for a place such as (epoch, step, rank), unlike that of any other place."""
    return int(np.random.SeedSequence(seed, spawn_key=(1, *place)).generate_state(1, np.uint64)[0])


@final
class InMemory:
    """Images held on the training device; all views of a batch are cut out of the same pixels there.

    Parameters
    ----------
    pixels : Tensor
        (n, 3, size, size), uint8.
    """

    def __init__(self, pixels: UInt8[Tensor, "n 3 size size"]) -> None:
        self.pixels = pixels
        self.statistics = channel_statistics(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def augmenter(self, view: Augmentation) -> nn.Module:
        """Return what makes a view out of `images`."""
        return Augmenter(view, *self.statistics)

    def open(self, share: Share, device: torch.device) -> None:
        """Move the images to the device once."""
        self._share = share
        self.pixels = self.pixels.to(device)

    def images(self, epoch: int, batch: int, views: int) -> list[UInt8[Tensor, "b 3 size size"]]:
        """Return this process's share of a micro-batch, for each of the views."""
        rows = self._share.rows(epoch, batch)
        return [self.pixels[rows.to(self.pixels.device)]] * views

    def close(self) -> None:
        """Do nothing."""
