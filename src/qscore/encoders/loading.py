"""One function that turns what a user typed into an encoder."""

import contextlib
import hashlib
import math
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision import models

from qscore._validate import QScoreError, nearest
from qscore.encoders.backbones import LIBRARIES, drop_classifier
from qscore.encoders.checkpoint import load_checkpoint
from qscore.encoders.encoder import Encoder, Source
from qscore.encoders.preprocessing import Preprocessing

__all__ = ["load_encoder"]


def load_encoder(spec: str | Path | Encoder) -> Encoder:
    """Load a trained encoder.

    Parameters
    ----------
    spec : str, Path or Encoder
        ``"torchvision:NAME"`` or ``"timm:NAME"`` for that library's pre-trained weights with their own preprocessing;
        an encoder directory or its ``encoder.safetensors``; an encoder is returned as it is.

    Returns
    -------
    Encoder
        In evaluation mode, on the CPU.

    Raises
    ------
    QScoreError
        If the name is unknown, or the weights cannot be fetched, are damaged or do not fit.
    """
    if isinstance(spec, Encoder):
        return spec
    library, _, name = str(spec).partition(":")
    if library in PRETRAINED:
        return _load_pretrained(library, name)
    try:
        exists = Path(spec).exists()
    except OSError as error:
        raise QScoreError(f"encoder {str(spec)!r}: {error.strerror}") from error
    if exists:
        return load_checkpoint(Path(spec))
    raise QScoreError(
        f"encoder {str(spec)!r}: expected torchvision:NAME, timm:NAME, an encoder directory or its "
        f"encoder.safetensors; got no such file or folder{_hint(str(spec))}"
    )


def _hint(spec: str) -> str:
    if spec.startswith("small:"):
        return "; small networks have no pre-trained weights: train one first"
    for library in PRETRAINED:
        if LIBRARIES[library].knows(spec):
            return f"; did you mean '{library}:{spec}'?"
    return nearest(spec, (f"{library}:{name}" for library in PRETRAINED for name in LIBRARIES[library].names()))


def _load_pretrained(library: str, name: str) -> Encoder:
    if not LIBRARIES[library].knows(name):
        hint = nearest(name, LIBRARIES[library].names())
        raise QScoreError(f"encoder '{library}:{name}': {library} has no network of this name{hint}")
    try:
        # Building draws random weights first, and torch.hub announces downloads on standard output.
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):
            backbone, source = PRETRAINED[library](name)
    except QScoreError:
        raise
    except Exception as error:  # libraries, network and damaged files raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QScoreError(
            f"encoder '{library}:{name}': its pre-trained weights could not be loaded: {reason}; "
            "check the name, the network connection and the download cache"
        ) from error
    return Encoder(backbone, source)


def _load_torchvision(name: str) -> tuple[nn.Module, Source]:
    weights = models.get_model_weights(name).DEFAULT
    # The builder below unpickles whatever the file holds; reading it for tensors alone first refuses anything else.
    weights.get_state_dict(check_hash=True, weights_only=True)
    model = models.get_model(name, weights=weights)
    dropped = drop_classifier(model, name)
    preset = weights.transforms()
    preprocessing = Preprocessing(
        crop=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    return model, Source("torchvision", f"torchvision:{name}", preprocessing, "supervised", _sha256(file), (dropped,))


def _load_timm(name: str) -> tuple[nn.Module, Source]:
    import timm  # slow to import, and often not needed
    from timm.data.config import resolve_model_data_config

    model = timm.create_model(name, pretrained=True, num_classes=0)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    tag = f".{config['tag']}" if config.get("tag") else ""
    classifier = config.get("classifier") or ()
    source = Source(
        "timm",
        f"timm:{config['architecture']}{tag}",
        _timm_preprocessing(resolve_model_data_config(model), name),  # type: ignore[no-untyped-call]
        sha256=_sha256(_timm_file(config)),
        dropped=(classifier,) if isinstance(classifier, str) else tuple(classifier),
    )
    return model, source


def _timm_preprocessing(config: dict[str, Any], name: str) -> Preprocessing:
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["crop_mode"] not in ("center", "squash"):
        raise QScoreError(f"timm:{name}: expected square RGB input, centre-cropped or squashed, got {config}")
    return Preprocessing(
        crop=height,
        resize=math.floor(height / config["crop_pct"]),
        squash=config["crop_mode"] == "squash",
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _timm_file(config: dict[str, Any]) -> Path | None:
    """Return the file of the Hugging Face cache that timm has read, the safe form first as timm does."""
    from huggingface_hub import try_to_load_from_cache

    if config.get("hf_hub_id"):
        repository, _, revision = config["hf_hub_id"].partition("@")
        for filename in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(repository, filename, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    return None


def _sha256(file: Path | None) -> str | None:
    if file is None or not file.is_file():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# One row for each library; checkpoint formats by others get their own table beside it.
PRETRAINED = {"torchvision": _load_torchvision, "timm": _load_timm}
