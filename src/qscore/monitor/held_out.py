"""The images to watch: the same ones every time, in batches that do not depend on who embeds them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from qscore._validate import QScoreError
from qscore.images import open_images

__all__ = ["HeldOut"]

Transform = Callable[[Any], Tensor]


@final
class HeldOut:
    """Images in numbered batches, each of which always holds the same ones.

    Parameters
    ----------
    images : DataLoader, Dataset, Tensor, iterable of batches, ImageSource, str or Path
        As for :class:`qscore.QScoreMonitor`.
    transform : callable or None
        Of one image.
    max_images : int
        At most so many are taken, spread evenly; of an iterable, the first.
    batch_size : int
        Of images that do not come in batches.
    workers : int
        Of images that do not come with a loader.

    Raises
    ------
    QScoreError
        If there are fewer than two images, or they cannot be read again and again.
    """

    def __init__(
        self, images: Any, transform: Transform | None, max_images: int, batch_size: int, workers: int
    ) -> None:
        self._max_images = max_images
        self._stream: Iterable[Any] | None = None
        self._dataset: Any = None
        self._options: dict[str, Any] = {"num_workers": workers}
        if isinstance(images, str | Path):
            images = open_images(images)
        if isinstance(images, DataLoader):
            self._take_loader(images, transform, batch_size)
        elif hasattr(images, "__getitem__") and hasattr(images, "__len__") and not _are_batches(images):
            self._take_rows(images, transform, range(len(images)), batch_size)
        elif hasattr(images, "image") and hasattr(images, "record"):
            if transform is None:
                raise QScoreError(
                    "images: of files, expected a transform as well, which makes the encoder's input of a PIL image: "
                    "transform=encoder.preprocess, or what the training evaluates with"
                )
            self._take_rows(_Pictures(images), transform, range(len(images)), batch_size)
        else:
            self._take_stream(images, transform)

    def batches(self, first: int = 0, step: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Give the batches of numbers ``first``, ``first + step``, ... with their numbers.

        Raises
        ------
        QScoreError
            If a batch holds no tensor.
        """
        if self._stream is not None:
            yield from self._stream_batches(self._stream, first, step)
            return
        mine = self._chunks[first::step]
        loader: Any = DataLoader(self._dataset, batch_sampler=mine, **self._options)
        for k, batch in enumerate(_refusing(loader)):
            yield first + k * step, first_tensor(batch)

    def _take_loader(self, loader: Any, transform: Transform | None, batch_size: int) -> None:
        if transform is not None:
            raise QScoreError("transform: a DataLoader's images are transformed already; give one of the two")
        if isinstance(loader.sampler, DistributedSampler):
            raise QScoreError(
                "images: the loader's DistributedSampler gives each process other images; pass a loader without one, "
                "since the batches are shared out here"
            )
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            self._take_stream(loader, None)
            return
        self._options = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
        self._take_rows(loader.dataset, None, _drawn(loader), loader.batch_size or batch_size)

    def _take_rows(self, images: Any, transform: Transform | None, rows: Any, batch_size: int) -> None:
        n, m = len(rows), min(len(rows), self._max_images)
        if n < 2:
            raise QScoreError(f"images: expected at least 2, got {n}")
        self._dataset = images if transform is None else _Transformed(images, transform)
        chosen = [rows[i * n // m] for i in range(m)]  # spread over what may be sorted by class
        self._chunks = [chosen[start : start + batch_size] for start in range(0, m, batch_size)]

    def _take_stream(self, images: Any, transform: Transform | None) -> None:
        if transform is not None:
            raise QScoreError("transform: batches cannot be transformed one image at a time; pass a data set")
        if not isinstance(images, Iterable):
            raise QScoreError(
                "images: expected a DataLoader, a data set, a tensor, a list of batches, an image source or a path, "
                f"got {type(images).__name__}"
            )
        if isinstance(images, Iterator):
            raise QScoreError(f"images: a {type(images).__name__} can be read only once; pass a list or a loader")
        self._stream = images

    def _stream_batches(self, stream: Iterable[Any], first: int, step: int) -> Iterator[tuple[int, Tensor]]:
        rows = 0
        for number, batch in enumerate(_refusing(stream)):
            x = first_tensor(batch)[: self._max_images - rows]
            if not len(x):
                return
            rows += len(x)
            if number % step == first:
                yield number, x


class _Pictures(Dataset[Any]):
    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return self._source.image(index)


class _Transformed(Dataset[Tensor]):
    def __init__(self, images: Any, transform: Transform) -> None:
        self._images = images
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        item = self._images[index]
        return self._transform(item[0] if isinstance(item, tuple | list) else item)


def _are_batches(images: Any) -> bool:
    if not isinstance(images, list | tuple) or not images:
        return False
    first = images[0]
    while isinstance(first, tuple | list) and first:
        first = first[0]
    return isinstance(first, Tensor) and first.ndim == 4


def first_tensor(batch: Any) -> Tensor:
    """Return a batch's images: itself, or what comes first in it.

    Raises
    ------
    QScoreError
        If that is no tensor.
    """
    while isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise QScoreError(
            f"images: expected batches of tensors, or of tuples that begin with one, got {type(batch).__name__}"
        )
    return batch


def _drawn(loader: Any) -> list[int]:
    """Return the rows that a loader's sampler draws, once and for all, in their order; generators stay as they are."""
    generator = getattr(loader.sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # in all processes alike
        rows = sorted(int(row) for batch in loader.batch_sampler for row in batch)
    if generator is not None:
        generator.set_state(state)
    return rows


def _refusing(batches: Iterable[Any]) -> Iterator[Any]:
    """Give the batches, and say of images that do not make one what would."""
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except TypeError as error:
            if "default_collate" not in str(error):
                raise
            raise QScoreError(
                "images: the data set gives no tensors; pass a transform that makes one of an image"
            ) from error
        yield batch
