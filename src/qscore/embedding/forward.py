"""From images to representations: decoded and prepared in worker processes, then through the encoder."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qscore._stores import StoreError
from qscore._validate import QScoreError
from qscore._workers import fetched
from qscore.embedding.network import Network
from qscore.encoders import Encoder, Preprocessing
from qscore.images import ImageSource

__all__ = ["Plain", "Prepare", "Views", "forward"]

Prepare = Callable[[Image.Image, str], Tensor]  # an image and its id to (k, 3, h, w), the encoder's input


@dataclass(frozen=True)
class Plain:
    """The image as the encoder wants it."""

    preprocess: Preprocessing

    def __call__(self, image: Image.Image, id: str) -> Tensor:
        """Return (1, 3, crop, crop)."""
        return self.preprocess(image)[None]


@dataclass(frozen=True)
class Views:
    """Random views of an image, each a function of the seed, the image's id and the view's number alone.

    As in training, an image is first resized and cropped; the views are cut out of that.
    """

    preprocess: Preprocessing
    augmenter: Any
    """`Augmenter` whose views have the size and the normalisation that the encoder wants."""
    views: int
    """Views of each image, k >= 1."""
    seed: int

    def __call__(self, image: Image.Image, id: str) -> Tensor:
        """Return (k, 3, crop, crop); torch's random state is left as it was."""
        plain = replace(self.preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        pixels = (plain(image) * 255).round().to(torch.uint8)[None]
        state = torch.get_rng_state()
        try:
            views = []
            for view in range(1, self.views + 1):
                place = hashlib.sha256(f"{self.seed} {view} {id}".encode()).digest()
                torch.default_generator.manual_seed(int.from_bytes(place[:8]))  # not the GPU's, which torch's own does
                views.append(self.augmenter(pixels))
        finally:
            torch.set_rng_state(state)
        return torch.cat(views)


class _Loaded(NamedTuple):
    """A batch, or an item of it."""

    x: Tensor
    """(b * k, 3, h, w), of the images that could be read."""
    reasons: list[str]
    """For each image why it cannot be read, or the empty string."""
    failure: str
    """Why no image can be read; an error travels as text, since workers would wrap it in a traceback."""


class _Prepared(Dataset[_Loaded]):
    def __init__(self, source: ImageSource, prepare: Prepare) -> None:
        self.source = source
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Loaded:
        try:
            image = self.source.image(index)
            return _Loaded(self.prepare(image, self.source.record(index).id), [""], "")
        except StoreError as error:
            return _Loaded(torch.empty(0), [""], str(error))
        except QScoreError as error:
            return _Loaded(torch.empty(0), [str(error)], "")


def _collate(items: list[_Loaded]) -> _Loaded:
    read = [item.x for item in items if item.x.ndim > 1]
    failure = next((item.failure for item in items if item.failure), "")
    x = torch.cat(read) if read and not failure else torch.empty(0)
    return _Loaded(x, [item.reasons[0] for item in items], failure)


def forward(
    encoder: Encoder,
    source: ImageSource,
    prepare: Prepare,
    batches: Sequence[range],
    device: torch.device,
    precision: str,
    workers: int,
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Give the representations of each batch, leaving the encoder where it was.

    Parameters
    ----------
    encoder : Encoder
        With r features.
    source : ImageSource
        The images.
    prepare : callable
        What makes k inputs out of an image.
    batches : sequence of range
        Positions in ``source``.
    device : torch.device
        Where the encoder runs.
    precision : str
        A key of `PRECISIONS`.
    workers : int
        Processes that decode; 0 decodes in this one.

    Yields
    ------
    h : ndarray of shape (m * k, r), float32
        Of the m images of the batch that could be read, an image's k rows together.
    reasons : list of str
        For each image of the batch why it could not be read, or the empty string.

    Raises
    ------
    StoreError
        If the disk or the store fails, so that no image can be read.
    QScoreError
        If a single image does not fit into the device's memory, or a process that decodes has died.
    """
    if not batches:  # nothing to start processes for, or to move the encoder
        return
    loaded = fetched(
        _Prepared(source, prepare),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    # Of several GPUs torch would pin memory for the first.
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with (
        current,
        Network(encoder, device, precision, max(map(len, batches))) as network,
        closing(loaded),
    ):
        for x, reasons, failure in loaded:
            if failure:
                raise StoreError(failure)
            read = [not reason for reason in reasons]
            yield network(x, read) if any(read) else np.empty((0, encoder.dim), np.float32), reasons
