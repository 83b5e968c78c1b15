"""The project's own checkpoint: one safetensors file that knows its architecture and preprocessing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from qscore import __version__
from qscore._files import atomic_path, check_output, sha256
from qscore._validate import QScoreError
from qscore.encoders.assembly import assemble, refuse_infinite
from qscore.encoders.backbones import resolve_name
from qscore.encoders.encoder import Encoder, Source
from qscore.encoders.preprocessing import Preprocessing
from qscore.encoders.readout import Readout

__all__ = ["METADATA_KEY", "WEIGHTS", "convert_encoder", "load_checkpoint", "save_again", "save_encoder"]

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
OPTIONAL: dict[str, type] = {"layer": str, "tokens": str, "config": dict}


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
    source = Source("qscore", resolve_name(backbone_name), preprocessing, method)
    return _write(Path(directory), assemble(state_dict, source, "state_dict"), state_dict, extra or {})


def save_again(directory: str | Path, encoder: Encoder, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write an encoder of any origin, trained on, as `save_encoder` does.

    Parameters
    ----------
    directory : str or Path
        Made if absent.
    encoder : Encoder
        Made anew after its weights have changed.
    extra : mapping or None
        Anything else worth keeping, as JSON can hold it.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    QScoreError
        If a weight is infinite or not a number, or the directory cannot be written.
    """
    network = encoder.backbone.network if isinstance(encoder.backbone, Readout) else encoder.backbone
    state_dict = network.state_dict()
    refuse_infinite(state_dict, "the encoder")
    return _write(Path(directory), encoder, state_dict, extra or {})


def _write(folder: Path, encoder: Encoder, state_dict: Mapping[str, Tensor], extra: Mapping[str, Any]) -> Path:
    record, text = _describe(encoder, extra)
    content = _serialise(state_dict, text)
    with atomic_path(folder / READABLE) as file:
        file.write_text(json.dumps(record, indent=2) + "\n")
    with atomic_path(folder / WEIGHTS) as file:
        file.write_bytes(content)
    return folder / WEIGHTS


def convert_encoder(encoder: Encoder, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write an encoder from anywhere as one safetensors file that `load_encoder` takes.

    Parameters
    ----------
    encoder : Encoder
        As `load_encoder` returned it.
    out : str or Path
        The file.
    overwrite : bool, default=False
        Replace a file that is there.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    QScoreError
        If the file is there already, or cannot be written.
    """
    path = check_output(out, overwrite=overwrite)
    backbone = encoder.backbone
    network = backbone.network if isinstance(backbone, Readout) else backbone
    source = encoder.source.architecture
    origin = {name: value for name, value in encoder.source.to_json().items() if name != "config"}
    _, text = _describe(encoder, {"origin": origin})
    noise = torch.randn(2, 3, *[encoder.preprocess.crop] * 2, generator=torch.Generator().manual_seed(0))
    with atomic_path(path) as file:
        file.write_bytes(_serialise(network.state_dict(), text))
        with torch.inference_mode():
            if not torch.allclose(load_checkpoint(file)(noise), encoder(noise), rtol=1e-4, atol=1e-5):
                raise QScoreError(f"{source}: {path} would not give the same representations; use it as it is")
    return path


def _describe(encoder: Encoder, extra: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the description of an encoder, and its JSON."""
    source = encoder.source
    record = {
        "version": VERSION,
        "architecture": source.architecture,
        "dim": encoder.dim,
        "nonnegative": encoder.nonnegative,
        "preprocessing": source.preprocessing.to_json(),
        "method": source.method,
        "software": f"qscore {__version__}",
        "extra": dict(extra),
    } | {name: value for name in OPTIONAL if (value := getattr(source, name)) is not None}
    try:
        return record, json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise QScoreError(f"extra: expected values that JSON can hold: {error}") from error


def _serialise(state_dict: Mapping[str, Tensor], text: str) -> bytes:
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}
    content: bytes = save(tensors, metadata={METADATA_KEY: text})
    return content


def load_checkpoint(
    path: Path, *, layer: str | None = None, tokens: str | None = None, preprocessing: Preprocessing | str | None = None
) -> Encoder:
    """Load what `save_encoder` or `convert_encoder` wrote, from the file or its directory.

    ``layer``, ``tokens`` and ``preprocessing`` take the place of those in the file; see `load_encoder`.

    Raises
    ------
    QScoreError
        If the file is damaged, comes from elsewhere, or does not fit the architecture it names.
    """
    file = path / WEIGHTS if path.is_dir() else path
    try:
        digest = sha256(file)
        with safetensors.safe_open(file, framework="pt") as archive:
            metadata = archive.metadata() or {}
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise QScoreError(f"{file}: cannot read the encoder: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise QScoreError(f"{file}: expected an {WEIGHTS}, got a file that is damaged or of another kind") from error
    record = _parse(metadata.get(METADATA_KEY), file)
    as_saved = layer is None and tokens is None and preprocessing is None
    preprocessing = Preprocessing.from_json(record["preprocessing"]).overruled(preprocessing)
    readout = (record.get("layer"), record.get("tokens")) if (layer, tokens) == (None, None) else (layer, tokens)
    architecture, config = record["architecture"], record.get("config")
    source = Source(
        "qscore",
        architecture,
        preprocessing,
        record["method"],
        digest,
        layer=readout[0],
        tokens=readout[1],
        notes=_origin(record["extra"]),
        config=config,
    )
    encoder = assemble(tensors, source, str(file))
    if as_saved and (encoder.dim, encoder.nonnegative) != (record["dim"], record["nonnegative"]):
        raise QScoreError(
            f"{file}: expected {record['dim']} features, non-negative: {record['nonnegative']}, but the network gives "
            f"{encoder.dim}, {encoder.nonnegative}; load it with the software that wrote it ({record['software']})"
        )
    return encoder


def _origin(extra: Mapping[str, Any]) -> tuple[str, ...]:
    origin = extra.get("origin")
    if not isinstance(origin, dict):
        return ()
    return (f"converted from: {origin.get('format')}, SHA-256 {origin.get('sha256')}",)


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
    for name, expected in OPTIONAL.items():
        if name in record and not isinstance(record[name], expected):
            raise QScoreError(f"{file}: the description of the encoder is damaged: no valid {name!r}")
    return record
