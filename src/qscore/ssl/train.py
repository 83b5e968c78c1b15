"""`pretrain`: from the names of a method and of images to an encoder, with exact resumption."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.encoders import Preprocessing, build_backbone, measure_output, save_encoder
from qscore.images import ImageSource, open_images
from qscore.ssl.hardware import check_hardware, device_of, trainer_arguments
from qscore.ssl.methods import METHODS, Method
from qscore.ssl.module import Feed, Training
from qscore.ssl.pixels import InMemory, load_pixels, memory_limit, mixed_seed, pixel_bytes
from qscore.ssl.recipes import make_plan
from qscore.ssl.run import RunFolder
from qscore.ssl.stream import Streamed
from qscore.ssl.watch import AtomicCheckpoints, Interrupted, Watch, hold_interrupts, is_full, quiet_lightning

__all__ = ["choose_data", "first_process_speaks", "fit", "pretrain"]

log = logging.getLogger(__name__)

MOST_THREADS, MOST_PROCESSES = 8, 16


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
    stream: bool | None = None,
    keep_every: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Train an encoder on images without labels, and write it to a folder.

    The same call again continues an unfinished training where it stopped; on a CPU the weights are then bit for bit
    those of an unbroken one.

    Parameters
    ----------
    method : str
        ``"simclr"``, ``"moco"``, ``"swav"``, ``"byol"``, ``"simsiam"``, ``"dino"``, ``"vicreg"`` or ``"barlow"``.
    images : str, Path or ImageSource
        What `open_images` understands.
    out : str or Path
        Folder for ``encoder.safetensors``, ``encoder.json``, ``last.ckpt``, ``pretrain.json``, ``logs`` and
        ``checkpoints``.
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
        Processes to train with, each on a device of its own; the batch is divided among them. On GPUs they share the
        statistics of BatchNorm; on a CPU each has its own, so that their number changes the result.
    precision : str
        ``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``.
    accumulate : int
        Parts a batch is taken in, to save memory; their gradients are averaged.
    workers : int or None
        Threads that read images into memory once, None for as many as there are processors, at most 8; or processes
        that read and crop them all along where they are streamed, None for as many as there are processors for each
        of ``devices``, at most 16. They change no result.
    stream : bool or None
        Whether images are read anew for each view, which is then cropped out of the whole image. Otherwise they are
        read once and held on the device, the shorter side resized to the image size and the centre cropped. None
        streams what takes more than half of the machine's memory, or a quarter of a GPU's.
    keep_every : int or None
        Keep the encoder after every so many epochs as ``checkpoints/epoch-0010/encoder.safetensors``, and so on;
        `load_encoder` takes each of these folders.
    overwrite : bool
        Whether another training found in the folder is removed.

    Returns
    -------
    Path
        The file ``encoder.safetensors``.

    Raises
    ------
    QScoreError
        If an argument or an image cannot be used, the folder holds something else, the disk is full, or the loss is
        not finite; ``last.ckpt`` is then the last good one.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, with all that was done in ``last.ckpt``.
    """
    _check_numbers(seed, workers, keep_every)
    check_hardware(device, devices, precision, accumulate)
    source = open_images(images)
    folder = RunFolder(Path(out))
    with first_process_speaks(), torch.random.fork_rng(range(torch.cuda.device_count())):
        plan = make_plan(
            method,
            source,
            backbone=backbone,
            recipe=recipe,
            epochs=epochs,
            overrides=overrides or {},
            image_size=image_size,
            devices=devices,
            accumulate=accumulate,
        )
        if keep_every is not None and keep_every > plan.config.epochs:
            raise QScoreError(f"keep_every: expected 1 to {plan.config.epochs} epochs, got {keep_every}")
        torch.manual_seed(mixed_seed(seed))
        network = build_backbone(plan.backbone)
        dim, _ = measure_output(network, plan.image_size)
        module = METHODS[method].build(network, dim, plan.config)
        limit = memory_limit(device_of(device), devices)
        found = None if overwrite else folder.recorded("data")
        data = choose_data(stream, found, pixel_bytes(len(source), plan.image_size), limit)
        record = plan.to_json() | {"images": source.fingerprint, "data": data, "seed": seed}
        record |= {"devices": devices, "precision": precision, "accumulate": accumulate}
        rank_zero_only(folder.check)(record, overwrite=overwrite)
        if folder.weights.exists() and not overwrite:
            log.info("%s holds this training, finished", folder.path)
            return folder.weights
        feed: Feed
        if data == "stream":
            workers = workers or min(max((os.cpu_count() or 1) // devices, 1), MOST_PROCESSES)
            feed = _stream(source, module, plan.image_size, seed, workers)
        else:
            workers = workers or min(os.cpu_count() or 1, MOST_THREADS)
            feed = InMemory(load_pixels(source, plan.image_size, workers, limit))
        training = Training(module, plan.config, feed, seed=seed, parts=devices * accumulate)
        done = 0 if overwrite else folder.steps_done()
        sizes = [view.size for view in module.views]
        arguments = trainer_arguments(device, devices, precision, accumulate, module, sizes)
        rank_zero_only(folder.begin)(record, overwrite=overwrite)

        @rank_zero_only
        def save(directory: Path, extra: Mapping[str, Any]) -> None:
            mean, std = feed.statistics
            preprocessing = Preprocessing(crop=plan.image_size, resize=plan.image_size, mean=mean, std=std)
            save_encoder(directory, plan.backbone, network.state_dict(), preprocessing, method=method, extra=extra)

        def keep(epoch: int) -> None:
            if keep_every is not None and epoch % keep_every == 0:
                save(folder.kept(epoch), record | {"epochs_done": epoch})

        fit(training, folder, f"pretrain {method}", done, arguments, keep)
        save(folder.path, record)
    return folder.weights


def _check_numbers(seed: int, workers: int | None, keep_every: int | None) -> None:
    if seed < 0:
        raise QScoreError(f"seed: expected an integer of at least 0, got {seed}")
    if workers is not None and workers < 1:
        raise QScoreError(f"workers: expected at least 1, got {workers}")
    if keep_every is not None and keep_every < 1:
        raise QScoreError(f"keep_every: expected at least 1 epoch, got {keep_every}")


def _stream(source: ImageSource, method: Method, size: int, seed: int, workers: int) -> Streamed:
    log.info("the images are streamed by %d processes, and views cropped out of whole images", workers)
    return Streamed(source, tuple(method.views), size, seed=seed, workers=workers)


def choose_data(stream: bool | None, found: Any, needed: int, limit: int) -> str:
    """Return ``"memory"`` or ``"stream"``: what is asked for, what the folder holds, or what fits."""
    if stream is None:
        return found or ("memory" if needed <= limit else "stream")
    return "stream" if stream else "memory"


def _first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def first_process_speaks() -> Iterator[None]:
    """Let only the first of several processes say what goes on."""
    logger = logging.getLogger("qscore.ssl")
    level = logger.level
    if not _first_process():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def fit(
    training: Training,
    folder: RunFolder,
    description: str,
    done: int,
    hardware: Mapping[str, Any],
    keep: Callable[[int], None],
) -> None:
    """Train, from the last checkpoint where there is one; ``keep`` is called after each epoch, before it is saved."""
    if done:
        log.info("resuming at step %d of %d", done, training.total_steps)
    config = training.config
    batch = config.batch_size
    csv = CSVLogger(folder.path, name="logs")
    bar: Any = nullcontext(lambda *_: None)
    if _first_process():
        bar = progress(description, training.total_steps * batch, "images", start=done * batch)
    with quiet_lightning(), hold_interrupts() as interrupted, bar as advance:
        trainer = Trainer(
            **{**hardware, "plugins": [*hardware["plugins"], AtomicCheckpoints()]},
            max_epochs=config.epochs,
            gradient_clip_val=getattr(config, "clip_gradient", 0) or None,
            callbacks=[Watch(folder.checkpoint, batch, interrupted, advance, keep)],
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
        except OSError as error:  # of a logger: checkpoints and images tell of their own
            if not is_full(error):
                raise
            raise QScoreError(f"cannot write {folder.logs}: {error.strerror}") from error
        finally:
            training.feed.close()
