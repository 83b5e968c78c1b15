"""The encoders of a reproduction: pre-trained, supervised as a control, or random."""

import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from qscore._validate import QScoreError
from qscore.encoders import Preprocessing, build_backbone, load_encoder, measure_output, save_encoder
from qscore.images import ImageSource, subset
from qscore.images.augment import Augmentation
from qscore.ssl import pretrain
from qscore.ssl.hardware import device_of, trainer_arguments
from qscore.ssl.module import Feed, Training
from qscore.ssl.pixels import (
    InMemory,
    Share,
    Triple,
    channel_statistics,
    load_pixels,
    memory_limit,
    mixed_seed,
    pixel_bytes,
)
from qscore.ssl.run import RunFolder
from qscore.ssl.stream import Streamed
from qscore.ssl.train import MOST_PROCESSES, MOST_THREADS, choose_data, fit
from qscore.study.reproduce.context import Context
from qscore.study.reproduce.processes import run_command

__all__ = ["Trained", "kept_checkpoints", "make_random", "train_method", "train_supervised"]

log = logging.getLogger(__name__)


class Trained(Exception):  # noqa: N818 (not an error)
    """The one training that was asked for is done."""


PLAIN_VIEW = Augmentation(scale=(0.25, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)
MOST_FOR_STATISTICS = 20_000  # images that the colours' mean and deviation are taken from


def train_method(
    context: Context,
    method: str,
    images: ImageSource,
    out: Path,
    *,
    backbone: str,
    recipe: str,
    epochs: int,
    keep_every: int,
    warmup: float | None,
    image_size: int | None,
) -> Path:
    """Pre-train as `qscore pretrain` does, or find it done: a finished folder of the same training is left as it is.

    On several devices it is a command of its own: its processes are started by starting that command once more each.

    Raises
    ------
    Trained
        If this training is all that was asked for, and it is done.
    QScoreError
        If it cannot be done.
    """
    overrides = {} if warmup is None else {"warmup_epochs": warmup}
    place = "/".join(out.parts[-2:])
    if context.devices > 1 and context.train_only is None and not (out / "encoder.safetensors").exists():
        _train_apart(context, method, place)
    pretrain(
        method,
        images,
        out,
        backbone=backbone,
        recipe=recipe,
        epochs=epochs,
        keep_every=keep_every,
        overrides=overrides,
        image_size=image_size,
        seed=context.seed,
        device=context.device,
        devices=context.devices,
        precision=context.scale.precision,
        accumulate=context.scale.accumulate,
        workers=context.workers,
    )
    if context.train_only == place:
        raise Trained
    return out


def _train_apart(context: Context, method: str, place: str) -> None:
    if not context.options:
        raise QScoreError("devices: images must be named by strings, for other processes to open them")
    stage = place.partition("/")[0]
    log.info("%s is trained by a command of its own, on %d devices", place, context.devices)
    code = run_command(["--stage", stage, "--methods", method, "--train-only", place, *context.options])
    if code:
        raise QScoreError(f"training {place} on {context.devices} devices ended with code {code}; its errors are above")


def kept_checkpoints(folder: Path, every: int, epochs: int) -> dict[int, Path]:
    """Return the encoders kept along the way, by epoch.

    Raises
    ------
    QScoreError
        If one is missing: the training was made without ``--keep-every``, or with another.
    """
    found = {epoch: RunFolder(folder).kept(epoch) for epoch in range(every, epochs + 1, every)}
    missing = [path for path in found.values() if not (path / "encoder.safetensors").is_file()]
    if missing:
        raise QScoreError(
            f"{missing[0]} is not there: {folder} was trained without --keep-every {every}; remove it to train it anew"
        )
    return found


def make_random(context: Context, backbone: str, out: Path) -> Path:
    """Write the network that every pre-training of this backbone and seed starts from.

    Raises
    ------
    QScoreError
        If the folder holds another network.
    """
    if (out / "encoder.safetensors").is_file():
        found = load_encoder(out).source.architecture
        if found != backbone:
            raise QScoreError(f"{out} holds another network, {found}; remove it, or name another --out")
    else:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(mixed_seed(context.seed))
            network = build_backbone(backbone)
        n = min(len(context.train), MOST_FOR_STATISTICS)
        some = context.train if n == len(context.train) else subset(context.train, range(n))
        mean, std = channel_statistics(load_pixels(some, context.image_size, min(os.cpu_count() or 1, MOST_THREADS)))
        preprocessing = Preprocessing(crop=context.image_size, resize=context.image_size, mean=mean, std=std)
        save_encoder(out, backbone, network.state_dict(), preprocessing, method="random")
    return out


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings of the supervised control: those of He et al. (CVPR 2016, section 4.2), cropped as SSL's views are."""

    epochs: int
    """Passes over the images."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up before the cosine decay to 0."""
    batch_size: int = 256
    """Images per step."""
    optimizer: str = "sgd"
    """As in the source."""
    lr: float = 0.1
    """For 256 images per step."""
    weight_decay: float = 5e-4
    """Common on CIFAR; 1e-4 on ImageNet."""
    momentum: float = 0.9
    """As in the source."""
    trust_coefficient: float = 0.001
    """Of LARS alone."""
    augment: Augmentation = PLAIN_VIEW
    """Crops and mirroring."""


@final
class Labelled:
    """A feed that also tells the labels of the images it has just given.

    Parameters
    ----------
    feed : Feed
        Of the images.
    codes : Tensor
        (n,) the class of each.
    """

    def __init__(self, feed: Feed, codes: Tensor) -> None:
        self._feed = feed
        self._codes = codes
        self.latest = codes[:0]

    @property
    def statistics(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation of the colours."""
        return self._feed.statistics

    def __len__(self) -> int:
        return len(self._feed)

    def augmenter(self, view: Augmentation) -> nn.Module:
        """Return what makes a view."""
        return self._feed.augmenter(view)

    def open(self, share: Share, device: torch.device) -> None:
        """Remember which images will come, and where they shall be."""
        self._share, self._codes = share, self._codes.to(device)
        self._feed.open(share, device)

    def images(self, epoch: int, batch: int, views: int) -> list[Tensor]:
        """Return the images of a batch, and note their classes."""
        self.latest = self._codes[self._share.rows(epoch, batch).to(self._codes.device)]
        return self._feed.images(epoch, batch, views)

    def close(self) -> None:
        """Close the feed."""
        self._feed.close()


@final
class Supervised(nn.Module):
    """An encoder and a linear classifier under cross-entropy, in the shape of a self-supervised method."""

    def __init__(self, backbone: nn.Module, dim: int, n_classes: int, config: SupervisedConfig, feed: Labelled) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(dim, n_classes)
        self.views = (config.augment,)
        self._feed = feed

    def forward(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of the images that the feed has just given, and their representations."""
        h = self.backbone(views[0])
        return functional.cross_entropy(self.head(h).float(), self._feed.latest), h


def train_supervised(context: Context, backbone: str, out: Path) -> Path:
    """Train the supervised control, or go on with it; a single process, whatever ``devices`` says."""
    scale, size = context.scale, context.image_size
    n = len(context.train)
    batch = min(256, max(2, n // 4))
    config = SupervisedConfig(scale.supervised_epochs, batch_size=batch)
    if scale.recipe == "imagenet":  # as in the source, and He et al.'s crops since (Szegedy et al., CVPR 2015)
        config = replace(config, weight_decay=1e-4, augment=replace(config.augment, scale=(0.08, 1.0)))
    config = replace(config, augment=replace(config.augment, size=size))
    if config.epochs <= config.warmup_epochs:
        config = replace(config, warmup_epochs=0.0)
    folder = RunFolder(out)
    limit = memory_limit(device_of(context.device), 1)
    data = choose_data(None, folder.recorded("data"), pixel_bytes(n, size), limit)
    record = {
        "method": "supervised",
        "recipe": "supervised",
        "backbone": backbone,
        "image_size": size,
        "config": asdict(config),
        "images": context.train.fingerprint,
        "data": data,
        "seed": context.seed,
        "precision": scale.precision,
    }
    folder.check(record, overwrite=False)
    if folder.weights.exists():
        log.info("%s holds this training, finished", folder.path)
        return out
    labels = list(context.train.labels or [])
    classes = {label: code for code, label in enumerate(sorted(set(labels), key=str))}
    codes = torch.tensor([classes[label] for label in labels])
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(mixed_seed(context.seed))
        network = build_backbone(backbone)
        dim, _ = measure_output(network, size)
        feed = Labelled(_images(context, config, data, limit), codes)
        module: Any = Supervised(network, dim, len(classes), config, feed)
        settings: Any = config
        training = Training(module, settings, feed, seed=context.seed, parts=1)
        arguments = trainer_arguments(context.device, 1, scale.precision, 1, module, [size])
        folder.begin(record, overwrite=False)
        fit(training, folder, "train supervised", folder.steps_done(), arguments, lambda _: None)
        mean, std = feed.statistics
        preprocessing = Preprocessing(crop=size, resize=size, mean=mean, std=std)
        save_encoder(out, backbone, network.state_dict(), preprocessing, method="supervised", extra=record)
    return out


def _images(context: Context, config: SupervisedConfig, data: str, limit: int) -> Feed:
    workers = context.workers
    if data == "stream":
        workers = workers or min(os.cpu_count() or 1, MOST_PROCESSES)
        return Streamed(context.train, (config.augment,), context.image_size, seed=context.seed, workers=workers)
    return InMemory(
        load_pixels(context.train, context.image_size, workers or min(os.cpu_count() or 1, MOST_THREADS), limit)
    )
