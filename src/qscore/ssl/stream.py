"""Training images decoded anew for each view, in worker processes: for sets that no memory holds."""

import signal
from collections.abc import Iterator
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop

from qscore._validate import QScoreError
from qscore._workers import fetched
from qscore.images import ImageSource, subset
from qscore.images.augment import Augmentation, Augmenter
from qscore.ssl.pixels import Share, Triple, channel_statistics, load_pixels, mixed_seed

__all__ = ["Streamed", "random_crop"]

SAMPLE = 2048  # images that mean and deviation of the colours are taken from


def random_crop(image: UInt8[Tensor, "3 h w"], view: Augmentation) -> UInt8[Tensor, "3 size size"]:
    """Return a view's random crop of an image; its randomness is torch's global CPU generator alone.

    The law of the crop is that of images in memory, and so are its pixels, to half a grey level, where they are
    enlarged; where they are shrunk, the filter is antialiased.
    """
    top, left, h, w = RandomResizedCrop.get_params(image, list(view.scale), list(view.ratio))
    crop = image[None, :, top : top + h, left : left + w].float()
    if max(h, w) > view.size:
        crop = nn.functional.interpolate(crop, (view.size, view.size), mode="bilinear", antialias=True)
    else:
        crop = nn.functional.interpolate(crop, (view.size, view.size), mode="bilinear", align_corners=True)
    return crop[0].round().clamp(0, 255).to(torch.uint8)


@final
class Streamed:
    """Images that worker processes decode and crop, each view out of the whole image; colours change on the device.

    A crop is a function of seed, epoch, image and view: not of the number of workers, nor of where a training began.

    Parameters
    ----------
    source : ImageSource
        The images, of any size.
    views : tuple of Augmentation
        Of each image.
    size : int
        Side in pixels at which the colours' mean and deviation are taken, from up to 2,048 images.
    seed : int
        Of the crops.
    workers : int
        Processes, at least 1.
    statistics : pair of triples of float or None
        Mean and deviation of the colours, where they are known.
    """

    def __init__(
        self,
        source: ImageSource,
        views: tuple[Augmentation, ...],
        size: int,
        *,
        seed: int,
        workers: int,
        statistics: tuple[Triple, Triple] | None = None,
    ) -> None:
        self._crops = Crops(source, views, seed)
        self._workers = workers
        self._batches: Iterator[Loaded] = iter(())
        self._next: tuple[int, int] | None = None
        if statistics is None:
            some = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))
            statistics = channel_statistics(load_pixels(subset(source, some), size, workers))
        self.statistics = statistics

    def __len__(self) -> int:
        return len(self._crops.source)

    def augmenter(self, view: Augmentation) -> nn.Module:
        """Return what makes a view out of `images`: all but the crop."""
        augmenter = Augmenter(view, *self.statistics)
        augmenter.steps = augmenter.steps[1:]
        return augmenter

    def open(self, share: Share, device: torch.device) -> None:
        """Take note of what will be asked for."""
        self._share = share
        self._device = device

    def images(self, epoch: int, batch: int, views: int) -> list[UInt8[Tensor, "b 3 size size"]]:
        """Return crops of this process's share of a micro-batch, for each of the views.

        Raises
        ------
        QScoreError
            If an image cannot be read, or a worker process has died.
        """
        if self._next != (epoch, batch):
            self._batches = self._start(epoch, batch)
        crops, failure = next(self._batches)
        if failure:
            raise QScoreError(failure)
        self._next = divmod(epoch * self._share.batches + batch + 1, self._share.batches)
        return [view.to(self._device, non_blocking=True) for view in crops]

    def close(self) -> None:
        """End the worker processes."""
        self._batches, self._next = iter(()), None

    def _start(self, epoch: int, batch: int) -> "Iterator[Loaded]":
        return fetched(
            self._crops,
            batch_sampler=Places(self._share, epoch, batch),
            collate_fn=_collate,
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # otherwise torch's own is drawn from
        )


class Loaded(NamedTuple):
    """Crops of one image, (3, size, size) for each view, or of a batch; or why an image could not be read."""

    crops: list[Tensor]
    failure: str


@final
class Places:
    """The images of all micro-batches from one on to the end of the training, each with its epoch."""

    def __init__(self, share: Share, epoch: int, batch: int) -> None:
        self._share = share
        self._start = epoch * share.batches + batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(self._start, self._share.epochs * self._share.batches):
            epoch, batch = divmod(number, self._share.batches)
            yield [(epoch, index) for index in self._share.rows(epoch, batch).tolist()]


@final
class Crops(Dataset[Loaded]):
    """Random crops by epoch and image."""

    def __init__(self, source: ImageSource, views: tuple[Augmentation, ...], seed: int) -> None:
        self.source = source
        self._views = views
        self._seed = seed

    def __getitem__(self, place: tuple[int, int]) -> Loaded:
        epoch, index = place
        try:
            image = torch.from_numpy(np.array(self.source.image(index))).permute(2, 0, 1)  # (3, h, w)
        except QScoreError as error:  # as data: an exception would carry a traceback in its message
            return Loaded([], str(error))
        crops = []
        for number, view in enumerate(self._views):
            torch.default_generator.manual_seed(mixed_seed(self._seed, epoch, index, number))
            crops.append(random_crop(image, view))
        return Loaded(crops, "")


def _collate(items: list[Loaded]) -> Loaded:
    failure = next((item.failure for item in items if item.failure), "")
    return Loaded(
        [] if failure else [torch.stack(crops) for crops in zip(*(i.crops for i in items), strict=True)], failure
    )


def _ignore_interrupts(_worker: int) -> None:
    """Leave Ctrl-C, which reaches every process, to the one that trains: it saves, and then ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
