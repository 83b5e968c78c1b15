"""Where a fine-tuning starts from: an encoder, and its heads where it has any."""

import copy
import json
import logging
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qscore._files import sha256
from qscore._validate import QScoreError, nearest
from qscore.encoders import Encoder, load_encoder
from qscore.images import ImageSource
from qscore.ssl.methods import METHODS, Method
from qscore.ssl.overrides import replace_fields
from qscore.ssl.pixels import mixed_seed
from qscore.ssl.recipes import STEPS_PER_EPOCH, WHOLE_VIEWS, check_config, make_plan

__all__ = ["Start", "find_start", "read_state"]

log = logging.getLogger(__name__)

RECORDS = ("finetune.json", "pretrain.json")


@dataclass(frozen=True)
class Start:
    """Where a fine-tuning starts from."""

    encoder: Encoder
    """In evaluation mode; not changed by any training."""
    method: str
    """Name in `METHODS`."""
    recipe: str
    """What the method's settings come from."""
    config: Any
    """The method's settings, complete; those of the heads are the heads'."""
    state: Mapping[str, Tensor] | None
    """Of the method's module: encoder, heads, momentum encoders, queue. None where heads are to be made."""
    identity: str
    """SHA-256 of what it was read from, or the name of a network in a library."""

    def build(self, seed: int) -> Method:
        """Return the method's module, in training mode; fresh heads follow from the seed."""
        torch.manual_seed(mixed_seed(seed))
        backbone = copy.deepcopy(self.encoder.backbone)
        method: Any = METHODS[self.method].build(backbone, self.encoder.dim, self.config)
        if self.state is not None:
            method.load_state_dict(self.state)
        method.train()
        return typing.cast(Method, method)

    def to_json(self) -> dict[str, Any]:
        """Return what decides a training that starts here."""
        return {
            "method": self.method,
            "recipe": self.recipe,
            "config": asdict(self.config),
            "start": {"identity": self.identity, "encoder": self.encoder.source.to_json()},
        }


def find_start(
    checkpoint: str | Path | Encoder,
    method: str,
    source: ImageSource,
    *,
    overrides: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    warmup_epochs: int = 10,
) -> Start:
    """Read what is to be fine-tuned, with its heads where it has any.

    Parameters
    ----------
    checkpoint : str, Path or Encoder
        A directory of `pretrain` or `finetune`, whose ``last.ckpt`` holds the heads; or whatever `load_encoder` takes,
        which gets fresh heads of the method's recipe.
    method : str
        Name in `METHODS`.
    source : ImageSource
        The training images.
    overrides : mapping, optional
        Values for fields of the method's settings.
    batch_size : int, optional
        Images per step; by default that of the checkpoint's training, or the recipe's.
    warmup_epochs : int
        For which fresh heads will be trained.

    Raises
    ------
    QScoreError
        If the checkpoint cannot be read, its heads are another method's, or a setting is unknown or out of range.
    """
    if method not in METHODS:
        raise QScoreError(f"method {method!r}: expected one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    changes = dict(overrides or {}) | ({} if batch_size is None else {"batch_size": batch_size})
    for name in ("lr", "lr_end", "lr_biases", "warmup_epochs", "epochs"):
        if name in changes:
            raise QScoreError(f"{name}: fine-tuning has settings of its own; give --learning-rate and --epochs instead")
    encoder = load_encoder(checkpoint)
    if isinstance(checkpoint, str | Path) and Path(checkpoint).is_dir() and Path(checkpoint, "last.ckpt").is_file():
        return _with_heads(Path(checkpoint), encoder, method, source, changes)
    plan = make_plan(
        method,
        source,
        backbone=encoder.source.architecture,
        recipe="auto",
        epochs=max(warmup_epochs, 1),
        overrides=changes,
        image_size=encoder.preprocess.crop,
        devices=1,
        accumulate=1,
    )
    identity = encoder.source.sha256 or f"{encoder.source.format} {encoder.source.architecture}"
    log.info("%s comes without heads of %s: fresh ones are made", checkpoint_name(checkpoint), method)
    return Start(encoder, method, plan.recipe, plan.config, None, identity)


def checkpoint_name(checkpoint: Any) -> str:
    """Return what to call a checkpoint in a message."""
    return str(checkpoint) if isinstance(checkpoint, str | Path) else "the encoder"


def _with_heads(folder: Path, encoder: Encoder, method: str, source: ImageSource, changes: Mapping[str, Any]) -> Start:
    record = _read_record(folder)
    if record["method"] != method:
        raise QScoreError(
            f"{folder} holds the heads of {record['method']}, and the method asked for is {method}; fine-tune it by "
            f"{record['method']}, or give {folder / 'encoder.safetensors'} for fresh heads of {method}"
        )
    for name in WHOLE_VIEWS:
        if f"{name}.size" in changes:
            raise QScoreError(f"{name}.size: views have the size that the encoder was trained at")
    kind = type(METHODS[method].recipes["imagenet"])
    config = replace_fields(_from_json(kind, record["config"], folder), changes)
    n = len(source)
    if "batch_size" not in changes and config.batch_size > n:
        config = replace(config, batch_size=max(2, n // STEPS_PER_EPOCH))
        log.info("batches of %d images, for want of more", config.batch_size)
    config = replace(config, warmup_epochs=0.0)
    check_config(config, n, 1)
    check = METHODS[method].check
    if check is not None:
        config = check(config, config.batch_size, n)
    file = folder / "last.ckpt"
    start = Start(encoder, method, record["recipe"], config, read_state(file), sha256(file))
    try:
        with torch.random.fork_rng(devices=[]):
            start.build(0)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise QScoreError(f"{file}: its heads are not those of {method} with these settings: {reason}") from error
    log.info("heads of %s from %s", method, file)
    return start


def _read_record(folder: Path) -> dict[str, Any]:
    for name in RECORDS:
        if (folder / name).is_file():
            try:
                record: dict[str, Any] = json.loads((folder / name).read_text())
                if isinstance(record["method"], str) and record["config"] and record["recipe"]:
                    return record
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise QScoreError(f"{folder / name}: cannot read it: {error}") from error
    raise QScoreError(f"{folder}: last.ckpt is there, but neither of {' and '.join(RECORDS)} says what it holds")


def read_state(file: Path) -> dict[str, Tensor]:
    """Return the state of a method's module from the state of its training.

    Raises
    ------
    QScoreError
        If it cannot be read.
    """
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # damaged files raise nearly anything
        raise QScoreError(f"{file}: cannot read this checkpoint: {type(error).__name__}") from error
    return {name.removeprefix("method."): value for name, value in stored.items() if name.startswith("method.")}


def _from_json(kind: type, record: Mapping[str, Any], where: Path) -> Any:
    """Return settings from what `asdict` made of them."""
    hints = typing.get_type_hints(kind)
    values = {}
    try:
        for field in fields(kind):
            value = record[field.name]
            nested = hints[field.name]
            if is_dataclass(nested):
                value = _from_json(typing.cast(type, nested), value, where)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    except (KeyError, TypeError) as error:
        raise QScoreError(f"{where}: its settings are of another version of qscore, without {error}") from error
    return kind(**values)
