"""The project's own checkpoint: one safetensors file that knows its architecture and preprocessing."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from qscore import __version__
from qscore._files import atomic_path
from qscore._validate import QScoreError
from qscore.encoders.backbones import build_backbone, resolve_name
from qscore.encoders.encoder import Encoder, Source
from qscore.encoders.preprocessing import Preprocessing

__all__ = ["load_checkpoint", "save_encoder"]

VERSION = 1
WEIGHTS = "encoder.safetensors"
READABLE = "encoder.json"
METADATA_KEY = "qscore"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "architecture": str,
    "dim": int,
    "nonnegative": bool,
    "preprocessing": dict,
    "method": (str, type(None)),
    "software": str,
    "extra": dict,
}


def save_encoder(
    directory: str | Path,
    backbone_name: str,
    state_dict: Mapping[str, Tensor],
    preprocessing: Preprocessing,
    *,
    method: str | None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``encoder.safetensors`` and its readable copy ``encoder.json``; a failure leaves older files untouched.

    Parameters
    ----------
    directory : str or Path
        Made if absent.
    backbone_name : str
        What `build_backbone` was given.
    state_dict : mapping of str to Tensor
        The backbone's weights and buffers.
    preprocessing : Preprocessing
        What turns an image into the network's input at evaluation.
    method : str or None
        How it was trained, e.g. ``"simclr"``.
    extra : mapping or None
        Anything else worth keeping, as JSON can hold it.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    QScoreError
        If the weights do not fit the backbone, ``extra`` is not for JSON, or the directory cannot be written.
    """
    architecture = resolve_name(backbone_name)
    encoder = _assemble(state_dict, Source("qscore", architecture, preprocessing, method), "state_dict")
    record = {
        "version": VERSION,
        "architecture": architecture,
        "dim": encoder.dim,
        "nonnegative": encoder.nonnegative,
        "preprocessing": preprocessing.to_json(),
        "method": method,
        "software": f"qscore {__version__}",
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise QScoreError(f"extra: expected values that JSON can hold: {error}") from error
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    folder = Path(directory)
    with atomic_path(folder / READABLE) as file:
        file.write_text(json.dumps(record, indent=2) + "\n")
    with atomic_path(folder / WEIGHTS) as file:
        file.write_bytes(save(tensors, metadata={METADATA_KEY: text}))
    return folder / WEIGHTS


def load_checkpoint(path: Path) -> Encoder:
    """Load what `save_encoder` wrote, from the file or its directory.

    Raises
    ------
    QScoreError
        If the file is damaged, comes from elsewhere, or does not fit the architecture it names.
    """
    file = path / WEIGHTS if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        with safetensors.safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise QScoreError(f"{file}: cannot read the encoder: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise QScoreError(f"{file}: expected an {WEIGHTS}, got a file that is damaged or of another kind") from error
    record = _parse(metadata.get(METADATA_KEY), file)
    preprocessing = Preprocessing.from_json(record["preprocessing"])
    source = Source("qscore", record["architecture"], preprocessing, record["method"], sha256)
    encoder = _assemble(tensors, source, str(file))
    if (encoder.dim, encoder.nonnegative) != (record["dim"], record["nonnegative"]):
        raise QScoreError(
            f"{file}: expected {record['dim']} features, non-negative: {record['nonnegative']}, but the network gives "
            f"{encoder.dim}, {encoder.nonnegative}; load it with the software that wrote it ({record['software']})"
        )
    return encoder


def _parse(text: str | None, file: Path) -> dict[str, Any]:
    if text is None:
        raise QScoreError(f"{file}: expected an encoder written by qscore, got a safetensors file from elsewhere")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QScoreError(f"{file}: the description of the encoder is damaged") from error
    if not isinstance(record, dict) or record.get("version") != VERSION:
        version = record.get("version") if isinstance(record, dict) else None
        raise QScoreError(f"{file}: expected format version {VERSION}, got {version!r}; update qscore to read it")
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name, ...), kind):
            raise QScoreError(f"{file}: the description of the encoder is damaged: no valid {name!r}")
    return record


def _assemble(tensors: Mapping[str, Tensor], source: Source, name: str) -> Encoder:
    with torch.random.fork_rng(devices=[]):  # loading a network must not change the caller's random numbers
        backbone = build_backbone(source.architecture)
    _check_fit(tensors, backbone, name, source.architecture)
    backbone.load_state_dict(tensors)
    return Encoder(backbone, source)


def _check_fit(tensors: Mapping[str, Tensor], backbone: nn.Module, name: str, architecture: str) -> None:
    expected = backbone.state_dict()
    problems = [f"{key!r} is missing" for key in expected if key not in tensors]
    problems += [f"{key!r} is not part of it" for key in tensors if key not in expected]
    problems += [
        f"{key!r} has {_describe(tensors[key])} instead of {_describe(tensor)}"
        for key, tensor in expected.items()
        if key in tensors and _describe(tensors[key]) != _describe(tensor)
    ]
    if problems:
        more = f"; {len(problems) - 4} more do not fit" if len(problems) > 4 else ""
        raise QScoreError(f"{name}: the weights do not fit {architecture}: {'; '.join(problems[:4])}{more}")


def _describe(tensor: Tensor) -> str:
    kind = "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"
    return f"{kind} values of shape {tuple(tensor.shape)}"
