"""Encoders that others have released: the file is read, its format found, and every key accounted for."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qscore._validate import QScoreError
from qscore.encoders.assembly import assemble
from qscore.encoders.detection import PADDINGS, Candidate, choose, find_candidates, name_methods
from qscore.encoders.encoder import Encoder, Source
from qscore.encoders.preprocessing import Preprocessing
from qscore.encoders.reading import SAFER, Contents, Foreign, read_checkpoint

__all__ = ["load_released", "summarise"]

FILE_HINTS = re.compile(
    r"simclr|moco|swav|byol|simsiam|dinov2|dino|vicreg|barlow|supervised|solo|pretrain_res\d+x\d|resnet50-[124]x", re.I
)
SETTINGS = ("hyper_parameters", "hparams", "args", "cfg", "config", "opt")
TELLING = ("method", "name", "arch", "model", "backbone", "dataset")
DEEPEST, MOST_OBJECTS = 6, 10_000
MOST_HEADS = 256
OF_TRAINING = {"optimizer", "optimizer_states", "lr_schedulers", "scheduler", "epoch", "step", "global_step", "args"}


def load_released(
    path: Path,
    *,
    method: str | None = None,
    layer: str | None = None,
    tokens: str | None = None,
    stem_padding: int | None = None,
    heads: int | None = None,
    preprocessing: Preprocessing | str | None = None,
) -> Encoder:
    """Load a checkpoint in a format of others; see `load_encoder`.

    Raises
    ------
    QScoreError
        If the format is unknown or not settled, or any key does not fit.
    """
    if stem_padding is not None and stem_padding not in PADDINGS:
        raise QScoreError(f"stem_padding: expected 1 or 2, got {stem_padding!r}")
    if heads is not None and (not isinstance(heads, int) or not 1 <= heads <= MOST_HEADS):
        raise QScoreError(f"heads: expected a number from 1 to {MOST_HEADS}, got {heads!r}")
    contents = read_checkpoint(path)
    hints = tuple(_hints(path, contents.tree))
    try:
        candidates = find_candidates(contents.tree, stem_padding=stem_padding, heads=heads)
        if not candidates:
            raise QScoreError(_no_encoder(contents))
        chosen = choose(candidates, method, hints)
        _check_options(chosen[0].architecture, stem_padding, heads)
    except QScoreError as error:
        raise QScoreError(f"{path}: {error}") from error
    first = chosen[0]
    source = Source(
        " or ".join(dict.fromkeys(candidate.format.name for candidate in chosen)),
        first.architecture,
        first.preprocessing.overruled(preprocessing),
        name_methods(chosen, method),
        contents.sha256,
        tuple(dict.fromkeys(_module(key) for keys in first.dropped.values() for key in keys)),
        layer,
        tokens,
        tuple(_notes(first, contents, hints, advise=preprocessing is None)),
    )
    return assemble(first.tensors, source, str(path), originals=first.originals, surplus=first.surplus)


def _check_options(architecture: str, stem_padding: int | None, heads: int | None) -> None:
    if stem_padding is not None and "-cifar" not in architecture:
        raise QScoreError(f"stem_padding={stem_padding}: its stem is no 3x3 one; leave it out")
    width = re.match(r"vit:(\d+)x", architecture)
    if heads is not None and width is None:
        raise QScoreError(f"heads={heads}: it is no vision transformer; leave it out")
    if heads is not None and width is not None and int(width[1]) % heads:
        raise QScoreError(f"heads={heads}: its {width[1]} features are no multiple of that")


def summarise(encoder: Encoder) -> list[str]:
    """Return lines that say what an encoder is and how its file was read."""
    source = encoder.source
    n_parameters = sum(p.numel() for p in encoder.parameters())
    inputs = source.preprocessing
    resize = "none" if inputs.resize is None else f"{inputs.resize}{' squashed' * inputs.squash} {inputs.interpolation}"
    read = [f"layer {source.layer}"] if source.layer else []
    read += [f"tokens: {source.tokens}"] if source.tokens else []
    read += [f"{encoder.dim} features", "never negative" if encoder.nonnegative else "signed"]
    read += ["of unit L2 norm"] if encoder.normalised else []
    lines = [
        f"format: {source.format}",
        f"method: {source.method or 'unknown'}",
        f"architecture: {source.architecture}, {n_parameters:,} parameters",
        f"representation: {', '.join(read)}",
        f"preprocessing: resize {resize}, crop {inputs.crop}, mean {inputs.mean}, std {inputs.std}",
    ]
    return lines + list(source.notes)


def _notes(first: Candidate, contents: Contents, hints: tuple[str, ...], *, advise: bool) -> Iterator[str]:
    if first.container:
        yield f"state dict: at {'.'.join(first.container)}"
    if first.lead:
        yield f"prefix: {first.lead}"
    for reason, keys in first.dropped.items():
        modules = ", ".join(dict.fromkeys(map(_module, keys)))
        yield f"dropped: {modules} ({reason}, {len(keys)} {'key' if len(keys) == 1 else 'keys'})"
    if "-cifar" in first.architecture:
        yield f"stem: 3x3, stride 1, padding {first.architecture.partition('-cifar')[2][0]}, no max-pool"
    if first.format.same:
        yield "padding: TensorFlow's SAME in every convolution and pooling"
    if contents.foreign:
        yield f"not read: objects of {', '.join(contents.foreign[:4])}"
    yield from (f"hint: {hint}" for hint in hints)
    if advise and first.format.note:
        yield first.format.note
    if advise and first.format.name.startswith("solo-learn") and "-cifar" in first.architecture:
        dataset = next((found[0] for hint in hints if (found := re.search(r"dataset=cifar100?\b", hint))), None)
        trained = f"its stored settings say {dataset}, where" if dataset else "on CIFAR"
        yield f"note: ImageNet's mean and std are used; {trained} solo-learn's are others: give --preprocessing cifar"


def _module(key: str) -> str:
    """Shorten a key to the module whose part it is: one level, or two in an encoder's own head."""
    parts = key.split(".")
    depth = 2 if parts[0] in ("encoder_q", "encoder", "base_encoder", "backbone") and len(parts) > 2 else 1
    return ".".join(parts[:depth])


def _hints(path: Path, tree: Any) -> Iterator[str]:
    """Say what the file's name and its stored settings suggest."""
    found = FILE_HINTS.findall(path.name)
    if found:
        yield f"the file's name says {', '.join(dict.fromkeys(found))}"
    if isinstance(tree, Mapping):
        said = {name: text for key in SETTINGS if key in tree for name, text in _settings(tree[key], "", 0, set())}
        if isinstance(tree.get("arch"), str):
            said["arch"] = tree["arch"]
        telling = [f"{name}={text}" for name, text in said.items() if name in TELLING]
        if telling:
            yield f"its stored settings say {', '.join(telling)}"


def _settings(value: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Give the texts in stored settings, by the last name on their way; an object in several places counts once."""
    if isinstance(value, Foreign):
        value = value.state
    if isinstance(value, tuple) and len(value) == 2:  # a state in two parts
        value = value[0]
    if isinstance(value, str):
        yield name, value[:80]
    elif isinstance(value, Mapping) and depth < DEEPEST and id(value) not in seen and len(seen) < MOST_OBJECTS:
        seen.add(id(value))
        for key, item in value.items():
            # OmegaConf keeps values under names of its own.
            inner = name if key in ("_val", "_content") else str(key)
            yield from _settings(item, inner, depth + 1, seen)


def _no_encoder(contents: Contents) -> str:
    tree = contents.tree
    if any(name.startswith("torch.nn.modules.") for name in contents.foreign):
        return f"a whole model saved with torch.save(model), which needs its code to run; {SAFER}"
    if not isinstance(tree, Mapping):
        return f"expected a state dict, got a {type(tree).__name__}"
    keys = [str(key)[:60] for key in tree]
    if {"state", "param_groups"} <= set(keys) or (keys and set(keys) <= OF_TRAINING):
        return "holds the state of an optimiser and no weights; give the checkpoint of the network"
    if any("embedder.embedder" in key or "embeddings.patch_embeddings" in key for key in keys):
        return "weights from Hugging Face; give their directory, with config.json, or hf:NAME"
    inner = [key for value in tree.values() if isinstance(value, Mapping) for key in value]
    tensors = [str(key)[:60] for key in (keys if _any_tensor(tree) else inner)]
    return (
        "its keys are those of no format known (a ResNet, ViT or ConvNeXt by one of the publishers in the "
        f"documentation): {', '.join(tensors[:4]) or 'none at all'}"
    )


def _any_tensor(tree: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in tree.values())
