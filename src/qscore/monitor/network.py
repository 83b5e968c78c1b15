"""Someone else's module, read without leaving a trace: modes, random states and gradients stay as they were."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qscore._validate import QScoreError, nearest, one_line

__all__ = ["Encode", "embed_batch", "find_encoder", "unchanged"]

Encode = Callable[[Tensor], Any]


def find_encoder(module: nn.Module, encoder: Any) -> tuple[Encode, nn.Module]:
    """Return what maps a batch to representations, and the module that holds its parameters.

    Parameters
    ----------
    module : nn.Module
        What is trained; the module inside, where it is wrapped for several processes.
    encoder : str, nn.Module, callable or None
        An attribute, with dots; a network; a function of module and batch; or None for the module itself.

    Raises
    ------
    QScoreError
        If there is no such attribute, naming those there are, or it is no network.
    """
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        module = module.module
    if encoder is None or isinstance(encoder, nn.Module):
        network = module if encoder is None else encoder
        return network, network
    if not isinstance(encoder, str):
        return lambda x: encoder(module, x), module
    found: Any = module
    for name in encoder.split("."):
        if not hasattr(found, name):
            raise _absent(module, encoder, found, name)
        found = getattr(found, name)
    if not isinstance(found, nn.Module):
        raise QScoreError(f"encoder: {encoder!r} of {type(module).__name__} is no network, but {type(found).__name__}")
    return found, found


@contextmanager
def unchanged(*modules: nn.Module) -> Iterator[None]:
    """Within the block, modules are in evaluation mode and nothing has a gradient; all random states are kept."""
    flags = {part: part.training for module in modules for part in module.modules()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # other people's augmentations may use it
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            # Not by eval() and train(): modules that override them may do more, such as merging weights.
            for part in flags:
                part.training = False
            yield
        finally:
            for part, flag in flags.items():
                part.training = flag
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def embed_batch(encode: Encode, network: nn.Module, x: Tensor) -> Float[np.ndarray, "b r"]:
    """Return the representations of a batch, in float32.

    Raises
    ------
    QScoreError
        If the encoder does not accept the images, or gives no representations of them.
    """
    tensors = [*network.parameters(), *network.buffers()]
    device = tensors[0].device if tensors else x.device
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), x.dtype)
    try:
        h = encode(x.to(device, dtype if x.is_floating_point() else x.dtype))
    except torch.OutOfMemoryError as error:
        raise QScoreError(f"{device} has not the memory for {len(x)} images at once; lower batch_size") from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise QScoreError(
            f"the encoder does not accept images of shape {tuple(x.shape)}, {x.dtype}: {one_line(error)}"
        ) from error
    rows = as_rows(h)
    if len(rows) != len(x):
        raise QScoreError(f"the encoder: expected a row for each of {len(x)} images, got shape {tuple(rows.shape)}")
    found: np.ndarray = rows.float().cpu().numpy()
    return found


def as_rows(h: Any) -> Float[Tensor, "b r"]:
    """Return representations (b, r); maps (b, r, h, w) are averaged over h and w, of a tuple the first entry taken.

    Raises
    ------
    QScoreError
        If they have another shape.
    """
    while isinstance(h, tuple | list) and h:
        h = h[0]
    if isinstance(h, Tensor) and h.ndim == 4:
        return h.float().mean((2, 3))
    if isinstance(h, Tensor) and h.ndim == 2:
        return h
    came = f"shape {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
    raise QScoreError(
        f"the encoder: expected output of shape (b, r) or (b, r, h, w), got {came}; pass "
        "encoder=lambda module, x: ..., which returns representations"
    )


def _absent(module: nn.Module, encoder: str, found: Any, name: str) -> QScoreError:
    names = [child for child, _ in found.named_children()] if isinstance(found, nn.Module) else []
    has = f"its modules are {', '.join(names)}" if names else "it has no modules"
    return QScoreError(
        f"encoder: {type(module).__name__} has no attribute {encoder!r}: {type(found).__name__} has no {name!r}"
        f"{nearest(name, names)}; {has}; pass encoder= with a name, or a function of (module, x)"
    )
