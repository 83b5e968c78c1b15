"""One training loop for every method: views, loss, schedule, checkpoints and exact resumption."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from qscore._progress import progress
from qscore._validate import QScoreError, nearest
from qscore.encoders import Preprocessing, build_backbone, measure_output, save_encoder
from qscore.images import ImageSource, open_images
from qscore.images.augment import Augmenter
from qscore.ssl.methods import METHODS, Method, TrainingConfig
from qscore.ssl.optim import build_optimizer, learning_rate_factor
from qscore.ssl.pixels import Triple, batch_rows, channel_statistics, load_pixels, mixed_seed
from qscore.ssl.recipes import make_plan
from qscore.ssl.run import RunFolder
from qscore.ssl.watch import AtomicCheckpoints, Interrupted, Watch, hold_interrupts, quiet_lightning

__all__ = ["Training", "pretrain"]

log = logging.getLogger(__name__)

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def pretrain(
    method: str,
    images: str | Path | ImageSource,
    out: str | Path,
    *,
    backbone: str | None = None,
    recipe: str = "auto",
    epochs: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    precision: str = "32-true",
    accumulate: int = 1,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Train an encoder on images without labels, and write it to a folder.

    The same call again continues an unfinished training where it stopped; on a CPU the weights are then bit for bit
    those of an unbroken one.

    Parameters
    ----------
    method : str
        ``"simclr"``.
    images : str, Path or ImageSource
        What `open_images` understands.
    out : str or Path
        Folder for ``encoder.safetensors``, ``encoder.json``, ``last.ckpt``, ``pretrain.json`` and ``logs``.
    backbone : str or None
        What `build_backbone` understands; None chooses by the size of the images.
    recipe : str
        Settings to start from: ``"imagenet"``, ``"cifar"``, ``"small"``, or ``"auto"`` to choose by the data.
    epochs : int or None
        Passes over the images, at least 1; None takes the recipe's.
    overrides : mapping or None
        Values for fields of the method's settings, e.g. ``{"lr": 0.1, "augment.flip": 0.0}``.
    image_size : int or None
        Side of the training images in pixels, 4 to 4096; None takes the images' own, at most 224.
    seed : int
        At least 0; with it all that is random is fixed.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    devices : int
        Processes to train with, each on a device of its own; the batch is divided among them.
    precision : str
        ``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``.
    accumulate : int
        Parts a batch is taken in, to save memory; their gradients are averaged.
    workers : int or None
        Threads that decode images; None takes as many as there are processors, at most 8.
    overwrite : bool
        Whether another training found in the folder is removed.

    Returns
    -------
    Path
        The file ``encoder.safetensors``.

    Raises
    ------
    QScoreError
        If an argument or an image cannot be used, the folder holds something else, or the loss is not finite.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, with all that was done in ``last.ckpt``.
    """
    if seed < 0:
        raise QScoreError(f"seed: expected an integer of at least 0, got {seed}")
    if workers is not None and workers < 1:
        raise QScoreError(f"workers: expected at least 1, got {workers}")
    hardware = _hardware(device, devices, precision, accumulate)
    source = open_images(images)
    plan = make_plan(
        method,
        source,
        backbone=backbone,
        recipe=recipe,
        epochs=epochs,
        overrides=overrides or {},
        image_size=image_size,
        parts=devices * accumulate,
    )
    folder = RunFolder(Path(out))
    record = plan.to_json() | {"images": source.fingerprint, "seed": seed}
    record |= {"devices": devices, "precision": precision, "accumulate": accumulate}
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(mixed_seed(seed))
        network = build_backbone(plan.backbone)
        dim, _ = measure_output(network, plan.image_size)
        rank_zero_only(folder.check)(record, overwrite=overwrite)
        if folder.weights.exists() and not overwrite:
            log.info("%s holds this training, finished", folder.path)
            return folder.weights
        pixels = load_pixels(source, plan.image_size, workers or min(os.cpu_count() or 1, 8))
        mean, std = channel_statistics(pixels)
        module = METHODS[method].build(network, dim, plan.config)
        training = Training(module, plan.config, pixels, mean, std, seed=seed, parts=devices * accumulate)
        done = 0 if overwrite else folder.steps_done()
        rank_zero_only(folder.begin)(record, overwrite=overwrite)
        _fit(training, folder, f"pretrain {method}", done, hardware)
    preprocessing = Preprocessing(crop=plan.image_size, resize=plan.image_size, mean=mean, std=std)
    rank_zero_only(save_encoder)(
        folder.path, plan.backbone, network.state_dict(), preprocessing, method=method, extra=record
    )
    return folder.weights


@final
class Training(LightningModule):
    """What Lightning needs to train any method on images in memory.

    Parameters
    ----------
    method : Method
        What is trained, in place.
    config : TrainingConfig
        How.
    pixels : Tensor
        Images, (n, 3, size, size), uint8.
    mean, std : tuple of three floats
        For the views' normalisation.
    seed : int
        Of everything random.
    parts : int
        Micro-batches that make one batch, over all processes.
    """

    def __init__(
        self,
        method: Method,
        config: TrainingConfig,
        pixels: Tensor,
        mean: Triple,
        std: Triple,
        *,
        seed: int,
        parts: int,
    ) -> None:
        super().__init__()
        self.method = method
        self.config = config
        self.pixels = pixels
        self.seed = seed
        self.micro_batch = config.batch_size // parts
        self.augmenters = nn.ModuleList(Augmenter(view, mean, std) for view in method.views)
        self.to(memory_format=torch.channels_last)  # a quarter of the time of convolutions is saved
        self.steps_per_epoch = len(pixels) // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch

    def on_fit_start(self) -> None:
        """Move the images to the device once."""
        self.pixels = self.pixels.to(self.device)

    def train_dataloader(self) -> "MicroBatches":
        """Return the numbers of an epoch's micro-batches; which images they mean, `training_step` works out."""
        return MicroBatches(self.steps_per_epoch * self.trainer.accumulate_grad_batches)

    def training_step(self, _batch: int, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch, whose images and views are a function of seed, epoch, step and rank."""
        rank, world = self.global_rank, self.trainer.world_size
        rows = batch_rows(
            len(self.pixels), self.seed, self.current_epoch, batch_idx, self.micro_batch * world, rank, world
        )
        torch.manual_seed(mixed_seed(self.seed, self.current_epoch, batch_idx, rank))
        images = self.pixels[rows.to(self.device)]
        views = [augmenter(images).contiguous(memory_format=torch.channels_last) for augmenter in self.augmenters]
        loss: Tensor = self.method(views)[0]
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=self.micro_batch)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the method do what follows one."""
        super().optimizer_step(*args, **kwargs)
        after_step = getattr(self.method, "after_step", None)
        if after_step is not None:
            after_step(self.trainer.global_step + 1, self.total_steps)  # Lightning counts this step later

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule by step."""
        optimizer = build_optimizer(self, self.config)
        warmup = int(self.config.warmup_epochs * self.steps_per_epoch)  # rounded down: a step of decay remains
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self.total_steps, warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@final
class MicroBatches:
    """The numbers 0 to ``count`` - 1; it has no state, so that an epoch can be resumed anywhere."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: Lightning asks a loader that can be resumed for its state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""


def _fit(training: Training, folder: RunFolder, description: str, done: int, hardware: Mapping[str, Any]) -> None:
    if done:
        log.info("resuming at step %d of %d", done, training.total_steps)
    batch = training.config.batch_size
    csv = CSVLogger(folder.path, name="logs")
    with (
        quiet_lightning(),
        hold_interrupts() as interrupted,
        progress(description, training.total_steps * batch, "images", start=done * batch) as advance,
    ):
        trainer = Trainer(
            **hardware,
            max_epochs=training.config.epochs,
            callbacks=[Watch(folder.checkpoint, batch, interrupted, advance)],
            plugins=[AtomicCheckpoints()],
            logger=[csv, TensorBoardLogger(folder.path, name="logs", version=csv.version)],
            log_every_n_steps=min(50, training.steps_per_epoch),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder.path,
        )
        try:
            trainer.fit(training, ckpt_path=folder.checkpoint if done else None, weights_only=True)
        except Interrupted:
            log.warning("stopped at step %d of %d; the same call continues", trainer.global_step, training.total_steps)
            raise KeyboardInterrupt from None
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None


def _hardware(device: str, devices: int, precision: str, accumulate: int) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer that say what to run on, and how."""
    kind, colon, number = device.partition(":")
    if kind not in ACCELERATORS or (colon and not (kind == "cuda" and number.isdecimal())):
        raise QScoreError(
            f"device {device!r}: expected one of {', '.join(ACCELERATORS)}, cuda:1{nearest(device, ACCELERATORS)}"
        )
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise QScoreError(f"device {device!r}: torch finds {torch.cuda.device_count()} CUDA devices; try 'cpu'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise QScoreError("device 'mps': torch finds no Apple GPU; try 'cpu'")
    if precision not in PRECISIONS:
        raise QScoreError(
            f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}{nearest(precision, PRECISIONS)}"
        )
    if devices < 1 or accumulate < 1 or (colon and devices > 1):
        raise QScoreError(
            f"devices, accumulate: expected at least 1, and one device if it is named, got {devices}, {accumulate}"
        )
    return {
        "accelerator": ACCELERATORS[kind],
        "devices": [int(number)] if colon else devices,
        "strategy": "ddp" if devices > 1 else "auto",
        "sync_batchnorm": devices > 1 and kind != "cpu" and torch.cuda.is_available(),  # it needs CUDA
        "precision": precision,
        "accumulate_grad_batches": accumulate,
    }
