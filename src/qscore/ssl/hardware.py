"""What a training runs on: devices, precision, and processes that share a batch."""

import copy
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from qscore._validate import QScoreError, nearest
from qscore.ssl.methods import Method

__all__ = ["check_hardware", "device_of", "trainer_arguments", "unused_parameters"]

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def check_hardware(device: str, devices: int, precision: str, accumulate: int) -> None:
    """Refuse what is unknown or not there.

    Raises
    ------
    QScoreError
        Naming the argument.
    """
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


def device_of(name: str) -> torch.device:
    """Return the device that a name means here."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def trainer_arguments(
    device: str, devices: int, precision: str, accumulate: int, method: Method, image_sizes: list[int]
) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer that say what to run on, and how.

    Parameters
    ----------
    device, devices, precision, accumulate
        As `pretrain` takes them, checked.
    method : Method
        What will be trained.
    image_sizes : list of int
        Side of each of its views in pixels.
    """
    _, colon, number = device.partition(":")
    target = device_of(device).type
    arguments: dict[str, Any] = {
        "accelerator": ACCELERATORS[target],
        "devices": [int(number)] if colon else devices,
        "sync_batchnorm": devices > 1 and target == "cuda",  # it needs CUDA
        "accumulate_grad_batches": accumulate,
        "plugins": [],
    }
    if devices > 1:
        unused = unused_parameters(method, image_sizes)
        arguments["strategy"] = DDPStrategy(find_unused_parameters=bool(unused))
    if precision == "32-true":
        arguments["precision"] = precision
    else:  # asked for by name, Lightning turns float16 on a CPU into bfloat16
        arguments["plugins"].append(MixedPrecision(precision, target))  # type: ignore[arg-type]
    return arguments


def unused_parameters(method: Any, image_sizes: list[int]) -> list[str]:
    """Return the trainable parameters that the loss does not reach; DDP waits for them unless it is told.

    The method is left as it was: a copy of it sees two images of noise.

    Parameters
    ----------
    method : Method
        On the CPU.
    image_sizes : list of int
        Side of each of its views in pixels.
    """
    trial: nn.Module = copy.deepcopy(method).train()
    views = [torch.rand(2, 3, size, size) for size in image_sizes]
    loss, _ = trial(views)
    loss.backward()
    return [name for name, p in trial.named_parameters() if p.requires_grad and p.grad is None]
