"""Weights into a network, strictly: every key fits, or the ones that do not are named."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qscore._validate import QScoreError
from qscore.encoders.backbones import build_backbone
from qscore.encoders.encoder import Encoder, Source
from qscore.encoders.readout import read_out

__all__ = ["assemble", "refuse_infinite"]

COUNTER = "num_batches_tracked"  # of training steps; evaluation ignores it, and old files lack it
NAMED = 4


def assemble(
    tensors: Mapping[str, Tensor],
    source: Source,
    name: str,
    *,
    originals: Mapping[str, str] | None = None,
    surplus: tuple[str, ...] = (),
) -> Encoder:
    """Make the encoder that a source describes from its weights.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By the network's own names; half precision is widened.
    source : Source
        Its architecture is built.
    name : str
        Of the file, for messages.
    originals : mapping of str to str, optional
        The file's name for each of ``tensors``, where it is another.
    surplus : tuple of str
        Other keys of the file that belong nowhere.

    Raises
    ------
    QScoreError
        If any key is missing, left over, or of another shape, or any value is infinite or not a number.
    """
    with torch.device("meta"):  # without memory for the weights, until the file is known to fill it
        network = _build(source, len(tensors))
    originals = originals or {}
    _check_fit(tensors, network, f"{name}: the weights do not fit {source.architecture}", originals, surplus)
    refuse_infinite({originals.get(key, key): tensor for key, tensor in tensors.items()}, name)
    if {buffer for buffer, _ in network.named_buffers()} - set(network.state_dict()):  # computed, and in no file
        with torch.random.fork_rng(devices=[]):  # loading a network must not change the caller's random numbers
            network = _build(source, len(tensors))
    _fill(network, tensors)
    return Encoder(read_out(network, layer=source.layer, tokens=source.tokens), source)


def refuse_infinite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are infinite or not a number: every representation would be one, or silently clipped.

    Raises
    ------
    QScoreError
        If there are any, naming the first key.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise QScoreError(f"{name}: {key!r} holds values that are infinite or not a number; the file is damaged")


def _build(source: Source, n_tensors: int) -> nn.Module:
    if source.config is None:
        return build_backbone(source.architecture)
    from qscore.encoders.hub import build_from_config

    return build_from_config(source.config, at_most=n_tensors)


def _fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        network.to_empty(device="cpu")
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key in tensors:
                tensor.copy_(tensors[key])
            else:
                tensor.zero_()


def _check_fit(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    what: str,
    originals: Mapping[str, str],
    surplus: tuple[str, ...],
) -> None:
    expected = network.state_dict()
    if not any(key.endswith(COUNTER) for key in tensors):
        expected = {key: tensor for key, tensor in expected.items() if not key.endswith(COUNTER)}
    problems = [f"{_publishers_name(key, originals)!r} is missing" for key in expected if key not in tensors]
    strangers = (*(originals.get(key, key) for key in tensors if key not in expected), *surplus)
    problems += [f"{key!r} is not part of it" for key in strangers]
    problems += [
        f"{originals.get(key, key)!r} has {_describe(tensors[key])} instead of {_describe(tensor)}"
        for key, tensor in expected.items()
        if key in tensors and _describe(tensors[key]) != _describe(tensor)
    ]
    if problems:
        more = f"; {len(problems) - NAMED} more do not fit" if len(problems) > NAMED else ""
        raise QScoreError(f"{what}: {'; '.join(problems[:NAMED])}{more}")


def _publishers_name(key: str, originals: Mapping[str, str]) -> str:
    """Return what the file would call a key that it lacks, going by its closest relative there."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        parent = "".join(f"{part}." for part in parts[:depth])
        for ours, theirs in originals.items():
            rest = ours[len(parent) :]
            if ours.startswith(parent) and theirs.endswith(rest):
                return theirs[: len(theirs) - len(rest)] + key[len(parent) :]
    return key


def _describe(tensor: Tensor) -> str:
    kind = "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"
    if tensor.is_quantized or tensor.layout != torch.strided:
        kind = "quantised or sparse"
    return f"{kind} values of shape {tuple(tensor.shape)}"
