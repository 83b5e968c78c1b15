"""The paper's linear probe: 100 epochs of SGD on augmented images through the frozen encoder.

The head is softmax(z W + b), z the standardised representation. Mean and standard deviation are those of the cached
training embeddings, so that one learning rate serves every encoder; He et al., "Masked Autoencoders Are Scalable Vision
Learners", CVPR 2022, appendix A.1, standardise for that reason. Where there are no images, the same steps are taken on
the cached embeddings.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.embedding.network import Network, pick_device
from qscore.encoders import Encoder
from qscore.evaluate.probes.linear import LinearClassifier, Standardizer, fit_standardizer
from qscore.evaluate.probes.pixels import PixelBatches
from qscore.evaluate.probes.rows import TrainingRows
from qscore.images import ImageSource
from qscore.images.augment import Augmentation, Augmenter
from qscore.kernels.cpu import usable_cores

__all__ = ["SGDConfig", "SGDFit", "cosine_factor", "encoder_sha256", "fit_sgd", "shuffled_runs", "train_head"]

BUFFER_BYTES = 2**28  # of rows that are shuffled among each other
RUN = 64  # rows read one after the other: from a disk, single rows are slow
ALIKE = 0.99  # cosine between a cached embedding and the encoder's; half precision costs less

Batches = Generator[tuple[Tensor, Tensor], None, None]  # standardised rows (b, r), and their classes (b,)


@dataclass(frozen=True)
class SGDConfig:
    """How the head is trained. Published: solo-learn's linear evaluation of ResNets on ImageNet-100, and the paper.

    Raises
    ------
    QScoreError
        If a value lies outside its range.
    """

    epochs: int = 100
    """Passes over the training rows (Kalibhat et al., arXiv 2203.01881; solo-learn)."""
    batch_size: int = 256
    """Rows per step (solo-learn)."""
    lr: float = 0.03
    """Learning rate of the first step for 256 rows; scaled with the batch, falls to 0 along half a cosine. Ours:
    solo-learn takes 0.1 to 30 on raw features, by method, in steps; standardising pooled ReLU features multiplies
    their squares by about three, so that its 0.1 becomes this."""
    momentum: float = 0.9
    """Of SGD (solo-learn)."""
    weight_decay: float = 0.0
    """Penalty on the weights (solo-learn)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the area of the random crop, as a fraction of the image (solo-learn, torchvision)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over its height (solo-learn, torchvision)."""
    flip: float = 0.5
    """Probability of a horizontal flip (solo-learn, torchvision)."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise QScoreError(
                f"sgd probe: expected epochs >= 1 and batch_size >= 1, got {self.epochs} and {self.batch_size}"
            )
        if not 0 < self.lr < math.inf or not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < math.inf:
            raise QScoreError(
                "sgd probe: expected lr > 0, momentum in [0, 1) and weight_decay >= 0, got "
                f"{self.lr}, {self.momentum} and {self.weight_decay}"
            )


@dataclass(frozen=True)
class SGDFit:
    """A head trained by SGD, and how it went."""

    classifier: LinearClassifier
    loss: float
    """Mean cross-entropy over the last epoch, while it ran."""
    encoder_sha256: str | None
    """Of the encoder's parameters and buffers, the same before and after; None without images."""


def fit_sgd(
    training: TrainingRows,
    *,
    config: SGDConfig,
    seed: int,
    device: str,
    encoder: Encoder | None = None,
    images: Sequence[str] | ImageSource | None = None,
    precision: str = "32-true",
    workers: int | None = None,
) -> SGDFit:
    """Train a linear head by SGD, on augmented images through the frozen encoder or on the embeddings as they are.

    Memory is bounded on either way: embeddings may be mapped from a file, and images that do not fit are decoded anew.
    The random state of torch is left as it was.

    Parameters
    ----------
    training : TrainingRows
        Cached embeddings with their classes.
    config : SGDConfig
        The recipe.
    seed : int
        Seed of order and augmentation.
    device : str
        ``"cpu"``, ``"cuda"``, ... or ``"auto"``.
    encoder : Encoder, optional
        What made the embeddings; stays as it is, which is checked.
    images : sequence of str or ImageSource, optional
        The image of each row of the embeddings; needed with ``encoder``.
    precision : str, default="32-true"
        Of the encoder, a key of `qscore.embedding.network.PRECISIONS`.
    workers : int, optional
        Threads that decode images; by default one a core.

    Raises
    ------
    QScoreError
        If the images are not those of the rows, an image cannot be read, the loss becomes infinite, or the encoder
        has changed.
    """
    place = pick_device(device)
    standardizer = fit_standardizer(training)
    batch_size = min(config.batch_size, len(training))
    before = None
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        if encoder is None or images is None:
            batches = _cached(training, standardizer, batch_size, seed, place)
            weights, bias, loss = train_head(batches, training, batch_size, config, place)
        else:
            _check_images(encoder, images, training)
            before = encoder_sha256(encoder)
            pixels = PixelBatches(images, training.rows, encoder.preprocess, workers or usable_cores())
            augmenter = _augmenter(encoder, config).to(place)
            with Network(encoder, place, precision, batch_size) as network:
                _check_alike(network, encoder, pixels, training)
                batches = _augmented(network, augmenter, pixels, training, standardizer, batch_size, seed, place)
                weights, bias, loss = train_head(batches, training, batch_size, config, place)
            _check_unchanged(encoder, before)
    return SGDFit(LinearClassifier(standardizer, weights, bias), loss, before)


def train_head(
    batches: Callable[[int], Batches],
    training: TrainingRows,
    batch_size: int,
    config: SGDConfig,
    place: torch.device,
) -> tuple[Float[np.ndarray, "r c"], Float[np.ndarray, " c"], float]:
    """Minimise the mean cross-entropy of softmax(z W + b) by SGD, from W = 0 and b = 0.

    Parameters
    ----------
    batches : callable
        Gives the batches of an epoch; together they are all training rows, once.
    training : TrainingRows
        For the numbers of rows, features and classes.
    batch_size : int
        Rows per step; the last step of an epoch may have fewer.
    config : SGDConfig
        The recipe.
    place : torch.device
        Where the head is.

    Returns
    -------
    weights : ndarray of shape (r, c), float32
    bias : ndarray of shape (c,), float32
    loss : float
        Mean over the last epoch, while it ran.

    Raises
    ------
    QScoreError
        If the loss becomes infinite.
    """
    n, c = len(training), len(training.classes)
    W = torch.zeros(training.n_features, c, device=place, requires_grad=True)
    b = torch.zeros(c, device=place, requires_grad=True)
    peak = config.lr * batch_size / 256
    optimizer = torch.optim.SGD([W, b], peak, config.momentum, weight_decay=config.weight_decay)
    steps, step, loss = config.epochs * math.ceil(n / batch_size), 0, math.nan
    with progress("sgd probe", config.epochs * n, "rows") as advance:
        for epoch in range(config.epochs):
            total = torch.zeros((), device=place)
            with closing(batches(epoch)) as stream:  # interrupted, it stops its threads at once
                for Z, codes in stream:
                    optimizer.param_groups[0]["lr"] = peak * cosine_factor(step, steps)
                    batch_loss = functional.cross_entropy(Z @ W + b, codes)
                    optimizer.zero_grad()
                    batch_loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    total += batch_loss.detach() * len(codes)
                    step += 1
                    advance(len(codes), f"loss {loss:.3f}" if epoch else "")
            loss = total.item() / n
            if not math.isfinite(loss):
                raise QScoreError(f"sgd probe: the loss became infinite in epoch {epoch + 1}; lower lr={config.lr:g}")
    return W.detach().cpu().numpy(), b.detach().cpu().numpy(), loss


def cosine_factor(step: int, steps: int) -> float:
    """Return the fraction of the peak learning rate at a step of ``0 .. steps - 1``: half a cosine from 1 towards 0.

    Examples
    --------
    >>> [round(cosine_factor(step, 4), 2) for step in range(4)]
    [1.0, 0.85, 0.5, 0.15]
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def shuffled_runs(n: int, buffer: int, rng: np.random.Generator) -> Iterator[Integer[np.ndarray, " b"]]:
    """Cut the numbers 0 .. n - 1 into parts for shuffling, each made of short runs from all over.

    Parameters
    ----------
    n : int
        Rows.
    buffer : int
        Numbers in a part; the last may have fewer.
    rng : numpy.random.Generator
        Decides.

    Yields
    ------
    ndarray of int
        A part, in runs of up to 64 consecutive numbers.
    """
    starts = RUN * rng.permutation(math.ceil(n / RUN))
    order = (starts[:, None] + np.arange(RUN)).ravel()
    order = order[order < n]
    for first in range(0, n, buffer):
        yield order[first : first + buffer]


def encoder_sha256(encoder: torch.nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _cached(
    training: TrainingRows, standardizer: Standardizer, batch_size: int, seed: int, place: torch.device
) -> Callable[[int], Batches]:
    """Give the cached embeddings in batches, in a new order every epoch; a part of them is in memory at a time."""
    codes = torch.from_numpy(training.codes)
    buffer = max(1, BUFFER_BYTES // (4 * training.n_features * batch_size)) * batch_size

    def batches(epoch: int) -> Batches:
        rng = np.random.default_rng([seed, epoch])
        for part in shuffled_runs(len(training), buffer, rng):
            Z, of_part = torch.from_numpy(standardizer(training.take(part))).to(place), codes[part].to(place)
            order = torch.from_numpy(rng.permutation(len(part))).to(place)
            for chosen in order.split(batch_size):  # type: ignore[no-untyped-call]
                yield Z[chosen], of_part[chosen]

    return batches


def _augmented(
    network: Network,
    augmenter: Augmenter,
    pixels: PixelBatches,
    training: TrainingRows,
    standardizer: Standardizer,
    batch_size: int,
    seed: int,
    place: torch.device,
) -> Callable[[int], Batches]:
    """Give the representations of a new view of every image, in a new order every epoch."""

    def batches(epoch: int) -> Batches:
        order = np.random.default_rng([seed, epoch]).permutation(len(training))
        chosen = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        for places, images in zip(chosen, pixels.batches(chosen), strict=True):
            h = network(augmenter(images.to(place)), [True] * len(places))
            yield torch.from_numpy(standardizer(h)).to(place), torch.from_numpy(training.codes[places]).to(place)

    return batches


def _augmenter(encoder: Encoder, config: SGDConfig) -> Augmenter:
    prepare = encoder.preprocess
    crop_and_flip = Augmentation(
        size=prepare.crop, scale=config.scale, ratio=config.ratio, flip=config.flip, jitter=0, grayscale=0, blur=0
    )
    return Augmenter(crop_and_flip, prepare.mean, prepare.std)


def _check_images(encoder: Encoder, images: Sequence[str] | ImageSource, training: TrainingRows) -> None:
    if encoder.dim != training.n_features:
        raise QScoreError(
            f"the encoder has {encoder.dim} features, and the training embeddings {training.n_features}; "
            "give the encoder that made them"
        )
    if len(images) != len(training.H):
        raise QScoreError(f"expected an image for each of {len(training.H):,} training rows, got {len(images):,}")


def _check_alike(network: Network, encoder: Encoder, pixels: PixelBatches, training: TrainingRows) -> None:
    """Refuse an encoder, or images, that do not give the cached embeddings."""
    h = network(encoder.preprocess(pixels.image(0))[None], [True])[0].astype(np.float64)
    cached = training.take(np.array([0]))[0].astype(np.float64)
    norms = np.linalg.norm(h) * np.linalg.norm(cached)
    cosine = float(h @ cached / norms) if norms else 1.0
    if cosine < ALIKE:
        raise QScoreError(
            f"the encoder does not give the training embeddings: for the first image the cosine between both is "
            f"{cosine:.3f}; give the encoder, and the images, that made them"
        )


def _check_unchanged(encoder: Encoder, before: str) -> None:
    if encoder_sha256(encoder) != before:
        raise QScoreError(
            "the encoder's parameters or buffers changed while the probe was trained, so that the probe says nothing "
            "of it; one of its modules updates itself even in evaluation mode"
        )
