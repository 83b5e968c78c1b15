"""One function that turns what a user typed into an encoder."""

import contextlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from qscore._files import sha256
from qscore._validate import QScoreError, nearest
from qscore.encoders import hub
from qscore.encoders.assembly import refuse_infinite
from qscore.encoders.backbones import LIBRARIES, drop_classifier
from qscore.encoders.checkpoint import METADATA_KEY, WEIGHTS, load_checkpoint
from qscore.encoders.encoder import Encoder, Source
from qscore.encoders.preprocessing import Preprocessing
from qscore.encoders.reading import read_metadata
from qscore.encoders.readout import read_out
from qscore.encoders.released import load_released

__all__ = ["load_encoder"]

CONFIG = "config.json"
TRAININGS = ("pretrain.json", "finetune.json")  # what `pretrain` and `finetune` write beside their state
LONGEST_REASON = 400


def load_encoder(
    spec: str | Path | Encoder,
    *,
    method: str | None = None,
    layer: str | None = None,
    tokens: str | None = None,
    stem_padding: int | None = None,
    heads: int | None = None,
    preprocessing: Preprocessing | str | None = None,
) -> Encoder:
    """Load a trained encoder, strictly: every weight is accounted for, or the file is refused.

    Parameters
    ----------
    spec : str, Path or Encoder
        ``"torchvision:NAME"``, ``"timm:NAME"`` or ``"hf:NAME"`` for pre-trained weights with their own preprocessing;
        a directory with ``config.json`` and ``model.safetensors`` by timm or transformers; an encoder directory or
        its ``encoder.safetensors``; a checkpoint of SimCLR, MoCo, SwAV, BYOL, SimSiam, DINO, VICReg, Barlow Twins,
        solo-learn, VISSL, lightly or Lightning. Of files by others only tensors are read; code in them never runs.
        An encoder is returned as it is.
    method : str, optional
        How it was trained, e.g. ``"simclr"`` or ``"supervised"``, or the name of a format: decides where nothing in
        the file does.
    layer : str, optional
        Take the representation at this module, a path as in ``named_modules()``; by default the network's output.
    tokens : {"class", "patches", "both"}, optional
        Of a vision transformer: the class token, the mean of the patch tokens, or the one beside the other; by
        default what the network's authors use.
    stem_padding : {1, 2}, optional
        Padding of a 3x3 stem, which no file tells; by default that of its format, if it has one.
    heads : int, optional
        Attention heads of a vision transformer, which no file tells; by default those of its format, if it has them.
    preprocessing : Preprocessing or {"imagenet", "cifar", "zero-one", "minus-one-one"}, optional
        Use this instead of the publisher's; a name stands for a mean and std, and leaves sizes and filter as they are.

    Returns
    -------
    Encoder
        In evaluation mode, on the CPU.

    Raises
    ------
    QScoreError
        If the name is unknown; if the weights cannot be fetched, are damaged, do not fit or need code to run; or if
        the file fits several formats that differ in arithmetic or preprocessing, which the message lists.

    Examples
    --------
    >>> import tempfile, torch, torchvision
    >>> from qscore import load_encoder
    >>> weights = torchvision.models.resnet18().state_dict()
    >>> file = tempfile.mkdtemp() + "/moco_v2.pth.tar"
    >>> weights = {f"module.encoder_q.{key}": value for key, value in weights.items()}
    >>> torch.save({"state_dict": weights}, file)
    >>> encoder = load_encoder(file)
    >>> encoder.source.format, encoder.dim, encoder.source.dropped
    ('MoCo v2', 512, ('encoder_q.fc',))
    """
    of_others = (method, stem_padding, heads)
    if isinstance(spec, Encoder):
        _refuse_options("an encoder that is loaded already", (layer, tokens, preprocessing, *of_others))
        return spec
    readout = {"layer": layer, "tokens": tokens}
    library, _, name = str(spec).partition(":")
    if library in PRETRAINED:
        _refuse_options(f"'{library}:'", of_others)
        return _load_pretrained(library, name, readout, preprocessing)
    path = _existing_path(spec)
    _refuse_training(path)
    if path.is_dir() and not Path(path, WEIGHTS).exists() and Path(path, CONFIG).is_file():
        _refuse_options("a directory", of_others)
        return _load_directory(path, readout, preprocessing)
    if path.is_dir() or METADATA_KEY in read_metadata(path):
        _refuse_options("an encoder of this package's", of_others)
        return load_checkpoint(path, **readout, preprocessing=preprocessing)
    return load_released(
        path, method=method, **readout, stem_padding=stem_padding, heads=heads, preprocessing=preprocessing
    )


def _existing_path(spec: str | Path) -> Path:
    """Return the path, or its directory if it is the weights of one by timm or transformers."""
    path = Path(spec)
    try:
        if not path.exists():
            raise QScoreError(
                f"encoder {str(spec)!r}: expected torchvision:NAME, timm:NAME, hf:NAME, an encoder directory or its "
                f"encoder.safetensors, or a checkpoint; got no such file or folder{_hint(str(spec))}"
            )
    except OSError as error:
        raise QScoreError(f"encoder {str(spec)!r}: {error.strerror}") from error
    if path.name == hub.WEIGHTS and METADATA_KEY not in read_metadata(path) and Path(path.parent, CONFIG).is_file():
        return path.parent
    return path


def _refuse_training(path: Path) -> None:
    """Refuse the state of a training, whose keys look like those of others' checkpoints."""
    folder = path if path.is_dir() else path.parent
    whole = Path(folder, WEIGHTS).is_file()
    if (
        not any(Path(folder, name).is_file() for name in TRAININGS)
        or path.name == WEIGHTS
        or (whole and path == folder)
    ):
        return
    cure = f"load {folder}" if whole else "finish it by the call that began it, or load one of its checkpoints/epoch-*"
    raise QScoreError(f"{path}: expected an encoder, got the state of a training; {cure}")


def _refuse_options(what: str, options: tuple[Any, ...]) -> None:
    if any(option is not None for option in options):
        raise QScoreError(f"{what} takes no such option: method, stem_padding and heads are for checkpoints of others")


def _hint(spec: str) -> str:
    if spec.startswith("small:"):
        return "; small networks have no pre-trained weights: train one first"
    libraries = [library for library in PRETRAINED if library in LIBRARIES]
    for library in libraries:
        if LIBRARIES[library].knows(spec):
            return f"; did you mean '{library}:{spec}'?"
    return nearest(spec, (f"{library}:{name}" for library in libraries for name in LIBRARIES[library].names()))


def _load_pretrained(
    library: str, name: str, readout: dict[str, str | None], preprocessing: Preprocessing | str | None
) -> Encoder:
    if library in LIBRARIES and not LIBRARIES[library].knows(name):
        hint = nearest(name, LIBRARIES[library].names())
        raise QScoreError(f"encoder '{library}:{name}': {library} has no network of this name{hint}")
    advice = "check the name, the network connection and the download cache"
    if library == "hf":
        advice += "; a gated model also needs 'hf auth login'"
    return _load(f"{library}:{name}", lambda: PRETRAINED[library](name), advice, readout, preprocessing)


def _load_directory(path: Path, readout: dict[str, str | None], preprocessing: Preprocessing | str | None) -> Encoder:
    try:
        config = json.loads(Path(path, CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise QScoreError(f"{path}: {CONFIG} is damaged: {error}") from error
    by_timm = isinstance(config, dict) and "architecture" in config
    # Those of transformers may come in several files.
    if not any(path.glob(hub.WEIGHTS if by_timm else "*.safetensors")):
        raise QScoreError(
            f"{path}: expected {hub.WEIGHTS} beside {CONFIG}; other weights are not read, as they may run code"
        )
    load = _load_timm_directory if by_timm else hub.load_hugging_face
    return _load(str(path), lambda: load(str(path)), f"check {CONFIG} and the weights", readout, preprocessing)


def _load(
    spec: str,
    load: Callable[[], tuple[nn.Module, Source]],
    advice: str,
    readout: dict[str, str | None],
    preprocessing: Preprocessing | str | None,
) -> Encoder:
    try:
        # Building draws random weights first, and torch.hub announces downloads on standard output.
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):
            backbone, source = load()
            refuse_infinite(dict(backbone.named_parameters()), spec)
    except QScoreError as error:
        raise QScoreError(f"encoder '{spec}': {error}") from error
    except Exception as error:  # libraries, network and damaged files raise nearly anything
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        raise QScoreError(
            f"encoder '{spec}': its pre-trained weights could not be loaded: {reason}; {advice}"
        ) from error
    source = replace(
        source,
        layer=readout["layer"],
        tokens=readout["tokens"],
        preprocessing=source.preprocessing.overruled(preprocessing),
    )
    return Encoder(read_out(backbone, layer=source.layer, tokens=source.tokens), source)


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

    model = timm.create_model(name, pretrained=True)  # num_classes=0 would load in part without a word
    model.reset_classifier(0)  # type: ignore[operator]
    return model, _describe_timm(model, name)


def _load_timm_directory(name: str) -> tuple[nn.Module, Source]:
    import timm  # slow to import, and often not needed

    # timm itself would read other files beside this one, and load in part where the number of classes differs.
    model = timm.create_model(f"local-dir:{name}", pretrained=False)
    before = set(model.state_dict())
    model.reset_classifier(0)  # type: ignore[operator]
    source = _describe_timm(model, name)
    tensors = load_file(Path(name, hub.WEIGHTS))
    filtered = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filtered is not None and not set(model.state_dict()) <= set(tensors):  # by other names than timm's
        tensors = filtered(tensors, model)
    head = before - set(model.state_dict())
    classifiers = tuple(f"{classifier}." for classifier in source.dropped)
    encoder = {key: t for key, t in tensors.items() if key not in head and not key.startswith(classifiers)}
    model.load_state_dict(encoder, strict=True)
    return model, source


def _describe_timm(model: nn.Module, name: str) -> Source:
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    tag = f".{config['tag']}" if config.get("tag") else ""
    classifier = config.get("classifier") or ()
    return Source(
        "timm",
        f"timm:{config['architecture']}{tag}",
        _timm_preprocessing(resolve_model_data_config(model), name),  # type: ignore[no-untyped-call]
        sha256=_sha256(_timm_file(config)),
        dropped=(classifier,) if isinstance(classifier, str) else tuple(classifier),
    )


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

    if config.get("source") == "local-dir":
        return Path(config["file"], hub.WEIGHTS)
    if config.get("hf_hub_id"):
        repository, _, revision = config["hf_hub_id"].partition("@")
        for filename in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(repository, filename, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    return None


def _sha256(file: Path | None) -> str | None:
    return sha256(file) if file is not None and file.is_file() else None


# One row for each library; checkpoint formats by others get their own table beside it.
PRETRAINED: dict[str, Callable[[str], tuple[nn.Module, Source]]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "hf": hub.load_hugging_face,
}
