"""Fine-tuning: heads for encoders that come without, and the training itself.

The learning rate is absolute, not for 256 images, and constant unless asked otherwise: the paper names a single low
one, and no schedule. All else is the method's recipe, with what belongs to the beginning of a pre-training left out.
"""

import copy
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qscore._files import atomic_path, to_json
from qscore._validate import QScoreError
from qscore.encoders import Encoder, save_again
from qscore.images import ImageSource
from qscore.images.augment import Augmentation
from qscore.ssl.addition import Addition
from qscore.ssl.hardware import check_hardware, device_of, trainer_arguments
from qscore.ssl.module import Feed, Training
from qscore.ssl.pixels import InMemory, load_pixels, memory_limit, pixel_bytes
from qscore.ssl.run import RunFolder
from qscore.ssl.start import Start, read_state
from qscore.ssl.stream import Streamed
from qscore.ssl.train import MOST_PROCESSES, MOST_THREADS, choose_data, fit

__all__ = ["SCHEDULES", "Hardware", "make_feeds", "represent", "tune", "tuned_history", "warm_up", "where_images_go"]

log = logging.getLogger(__name__)

SCHEDULES = ("constant", "cosine")
BEGINNING = {"freeze_epochs": 0, "queue_start": 0, "warmup_teacher_epochs": 0}  # of a pre-training, not of a tuning
HISTORY = "history.json"


@dataclass(frozen=True)
class Hardware:
    """What a training runs on."""

    device: str = "auto"
    """``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``."""
    precision: str = "32-true"
    """``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``."""
    workers: int | None = None
    """Threads that read images once, or processes that stream them; None by the processors."""
    stream: bool | None = None
    """Whether images are read anew for each view; None streams what does not fit into memory."""

    def check(self) -> None:
        """Refuse what is unknown or not there.

        Raises
        ------
        QScoreError
            Naming the argument.
        """
        check_hardware(self.device, 1, self.precision, 1)
        if self.workers is not None and self.workers < 1:
            raise QScoreError(f"workers: expected at least 1, got {self.workers}")


@dataclass(frozen=True)
class Rates:
    """What the training loop reads of settings: the method's own optimiser at a learning rate that is absolute."""

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    lr_end: float
    weight_decay: float
    momentum: float
    trust_coefficient: float
    clip_gradient: float
    augment: Augmentation
    warmup_epochs: float = 0.0


def make_feeds(start: Start, source: ImageSource, hardware: Hardware, data: str) -> Callable[[int], Feed]:
    """Return what gives a training with a seed its images, read once; normalised as the encoder wants them.

    Parameters
    ----------
    start : Start
        Its encoder's preprocessing says the size, mean and deviation.
    source : ImageSource
        The images.
    hardware : Hardware
        Where they shall be, and how they are read.
    data : str
        ``"memory"`` or ``"stream"``.
    """
    preprocess = start.encoder.preprocess
    statistics = (preprocess.mean, preprocess.std)
    if data == "stream":
        workers = hardware.workers or min(os.cpu_count() or 1, MOST_PROCESSES)
        views = tuple(start.build(0).views)

        def streamed(seed: int) -> Feed:
            feed = Streamed(source, views, preprocess.crop, seed=seed, workers=workers)
            feed.statistics = statistics
            return feed

        return streamed
    pixels: list[Tensor] = []

    def in_memory(_seed: int) -> Feed:
        if not pixels:
            limit = memory_limit(device_of(hardware.device), 1)
            threads = hardware.workers or min(os.cpu_count() or 1, MOST_THREADS)
            pixels.append(load_pixels(source, preprocess.crop, threads, limit))
        feed = InMemory(pixels[0])
        feed.statistics = statistics
        return feed

    return in_memory


def where_images_go(source: ImageSource, start: Start, hardware: Hardware, found: Any) -> str:
    """Return ``"memory"`` or ``"stream"``: as asked, as an earlier call ``found``, or by the memory."""
    needed = pixel_bytes(len(source), start.encoder.preprocess.crop)
    return choose_data(hardware.stream, found, needed, memory_limit(device_of(hardware.device), 1))


def warm_up(
    start: Start, feeds: Callable[[int], Feed], out: Path, epochs: int, *, seed: int, hardware: Hardware
) -> Start:
    """Train fresh heads, at the method's own pre-training rate; the encoder stays as it is, in evaluation mode.

    Parameters
    ----------
    start : Start
        Without a state; one with heads is returned as it is.
    feeds : callable
        As `make_feeds` returns it.
    out : Path
        A folder for the state, from which an interrupted warm-up goes on.
    epochs : int
        At least 0; with 0 the heads stay random.
    seed : int
        Of the heads and of everything random.
    hardware : Hardware
        What to run on.
    """
    if start.state is not None:
        return start
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        method: Any = start.build(seed)
        if not epochs:
            return replace(start, state=copy.deepcopy(method.state_dict()))
        folder = RunFolder(out, "warmup.json")
        record = start.to_json() | {"epochs": epochs, "seed": seed, "precision": hardware.precision}
        folder.check(record, overwrite=False)
        config = replace(start.config, epochs=epochs)
        training = Training(method, config, feeds(seed), seed=seed, parts=1, frozen=_encoders(method))
        folder.begin(record, overwrite=False)
        done = folder.steps_done()
        if done < training.total_steps:
            log.info("fresh heads of %s are trained for %d epochs, the encoder frozen", start.method, epochs)
            sizes = [view.size for view in method.views]
            arguments = trainer_arguments(hardware.device, 1, hardware.precision, 1, method, sizes)
            fit(training, folder, f"warm up heads of {start.method}", done, arguments, lambda _: None)
    return replace(start, state=read_state(folder.checkpoint))


def _encoders(method: Any) -> list[nn.Module]:
    """Return the encoder, and copies of it that follow it by moving averages."""
    copies = [
        part[0]
        for part in method.children()
        if isinstance(part, nn.Sequential) and not any(p.requires_grad for p in part.parameters())
    ]
    return [method.backbone, *copies]


def tune(
    start: Start,
    feeds: Callable[[int], Feed],
    folder: RunFolder,
    *,
    epochs: int,
    learning_rate: float,
    schedule: str = "constant",
    seed: int = 0,
    addition: Addition | None = None,
    hardware: Hardware,
    extra: Mapping[str, Any],
) -> Path:
    """Fine-tune, or go on with it, in a folder that has begun.

    Parameters
    ----------
    start : Start
        With a state.
    feeds : callable
        As `make_feeds` returns it.
    folder : RunFolder
        Gets ``encoder.safetensors``, ``encoder.json``, ``last.ckpt``, ``history.json`` and ``logs``.
    epochs : int
        Passes over the images, at least 1.
    learning_rate : float
        At least 0, whatever the batch; 0 moves nothing but BatchNorm's statistics.
    schedule : {"constant", "cosine"}
        Of the learning rate, from first step to last.
    seed : int
        Of the order of the images and of their views, which are the same whatever else differs.
    addition : Addition, optional
        What is added to the loss.
    hardware : Hardware
        What to run on.
    extra : mapping
        Noted in the encoder.

    Returns
    -------
    Path
        The file ``encoder.safetensors``.

    Raises
    ------
    Diverged
        If the loss, weights or representations are no longer finite.
    QScoreError
        If the folder cannot be written, or the regulariser refuses the representations.
    """
    if folder.weights.exists():
        log.info("%s holds this fine-tuning, finished", folder.path)
        return folder.weights
    changes = {name: value for name, value in BEGINNING.items() if hasattr(start.config, name)}
    start = replace(start, config=replace(start.config, epochs=epochs, **changes))
    rates: Any = _rates(start.config, epochs, learning_rate, schedule)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        method: Any = start.build(seed)
        training = Training(method, rates, feeds(seed), seed=seed, parts=1, addition=addition, whole=True)
        _tell(rates, training.total_steps, learning_rate, schedule)
        sizes = [view.size for view in method.views]
        arguments = trainer_arguments(hardware.device, 1, hardware.precision, 1, method, sizes)
        done = folder.steps_done()
        if done < training.total_steps:
            fit(training, folder, f"fine-tune {start.method}", done, arguments, lambda _: None)
        else:
            training.load_state_dict(torch.load(folder.checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        history = [] if addition is None else addition.history
        with atomic_path(folder.path / HISTORY) as file:
            file.write_text(to_json(history) + "\n")
        backbone = method.backbone.cpu().to(memory_format=torch.contiguous_format)
        source = replace(start.encoder.source, method=start.method)
        return save_again(folder.path, Encoder(backbone, source), extra=extra)


def tuned_history(folder: Path) -> list[dict[str, float]]:
    """Return what was noted of the regulariser every 50 steps; nothing where there was none."""
    history: list[dict[str, float]] = json.loads((folder / HISTORY).read_text())
    return history


def _rates(config: Any, epochs: int, learning_rate: float, schedule: str) -> Rates:
    lr = learning_rate * 256 / config.batch_size  # `build_optimizer` takes a rate for 256 images
    return Rates(
        epochs=epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        lr=lr,
        lr_end=lr if schedule == "constant" else 0.0,
        weight_decay=getattr(config, "weight_decay_end", config.weight_decay),
        momentum=config.momentum,
        trust_coefficient=config.trust_coefficient,
        clip_gradient=getattr(config, "clip_gradient", 0.0) or 0.0,
        augment=config.augment,
    )


def _tell(rates: Rates, steps: int, learning_rate: float, schedule: str) -> None:
    log.info("%d steps of %s at learning rate %g, %s", steps, rates.optimizer, learning_rate, schedule)
    if rates.optimizer == "lars" and learning_rate:
        moved = learning_rate * rates.trust_coefficient
        log.warning(
            "LARS moves a matrix of weights by about %.1g of its norm a step at this learning rate, so %.1g over all; "
            "--set optimizer=adamw or sgd takes the learning rate as it is",
            *(moved, moved * steps),
        )


def represent(encoder: Encoder, source: ImageSource, device: str, batch: int = 256) -> Any:
    """Return the representations of all images, preprocessed as for evaluation, shape (n, r), float32."""
    target = device_of(device)
    network = encoder.to(target).eval()
    found = []
    with torch.no_grad():
        for first in range(0, len(source), batch):
            rows = range(first, min(first + batch, len(source)))
            x = torch.stack([encoder.preprocess(source.image(i)) for i in rows])
            found.append(network(x.to(target)).float().cpu())
    return torch.cat(found).numpy()
