"""An encoder on its device: memory format, precision, and batches that fit into its memory."""

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import final

import numpy as np
import torch
from torch import Tensor

from qscore._validate import QScoreError, one_line
from qscore.encoders import Encoder

__all__ = ["PRECISIONS", "Network", "pick_device"]

log = logging.getLogger(__name__)

# Most of torch's allocators raise a plain RuntimeError, as do cuDNN and cuBLAS.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names


def pick_device(name: str) -> torch.device:
    """Return the device of that name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    QScoreError
        If the device is unknown or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise QScoreError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@final
class Network:
    """Computes representations on a device, for as long as the ``with`` block lasts; then the encoder is as it was.

    Parameters
    ----------
    encoder : Encoder
        With r features.
    device : torch.device
        Where it runs.
    precision : str
        A key of `PRECISIONS`.
    images : int
        Most images that a batch has, >= 1.
    """

    def __init__(self, encoder: Encoder, device: torch.device, precision: str, images: int) -> None:
        self._encoder = encoder
        self._device = device
        self._dtype = PRECISIONS[precision]
        self._images = self._asked = self._told = images
        self._proven = False
        # Convolutions are faster with channels last, on CPUs too; a vision transformer has a single one.
        convolutional = sum(p.ndim == 4 for p in encoder.parameters()) > 1
        self._format = torch.channels_last if convolutional else torch.contiguous_format

    def __enter__(self) -> "Network":
        self._home = next((p.device for p in self._encoder.parameters()), torch.device("cpu"))
        self._training = [module for module in self._encoder.modules() if module.training]
        _move(self._encoder.eval(), self._device, self._format)
        return self

    def __exit__(self, *_: object) -> None:
        _move(self._encoder, self._home, torch.contiguous_format)
        for module in self._training:
            module.training = True

    def __call__(self, x: Tensor, readable: Sequence[bool]) -> np.ndarray:
        """Return the representations of a batch, float32.

        Where memory does not suffice, this batch and all that follow go through in parts of half as many images, of a
        quarter, and so on: the parts are those of a run whose batches had that size.

        Parameters
        ----------
        x : Tensor of shape (m * k, 3, h, w)
            Of the m images of the batch that could be read, an image's k rows together.
        readable : sequence of bool
            For each image of the batch whether it could be read.

        Raises
        ------
        QScoreError
            If a single image does not fit.
        """
        ends = [0, *accumulate(readable)]
        k = len(x) // ends[-1]
        parts: list[np.ndarray] = []
        start = 0
        while start < len(readable):
            stop = min(start + self._images, len(readable))
            h = self._try(x[ends[start] * k : ends[stop] * k])
            if h is None:
                self._halve()
                continue
            parts.append(h)
            start = stop
        if self._images < self._told:
            self._told = self._images
            log.warning(
                "%s has not the memory for batches of %s images: going on with %s",
                self._device, f"{self._asked:,}", f"{self._images:,}",
            )  # fmt: skip
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _try(self, x: Tensor) -> np.ndarray | None:
        """Return the representations, or None where memory does not suffice."""
        if len(x) == 0:
            return np.empty((0, self._encoder.dim), np.float32)
        try:
            h = self._run(x)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                return None
            # At first it may be a network that calls view() on what it takes to be contiguous.
            if self._proven or self._format is torch.contiguous_format:
                self._refuse_weights(error)
                raise
        else:
            self._proven = True
            return h
        self._format = torch.contiguous_format
        _move(self._encoder, self._device, self._format)
        return self._try(x)

    def _refuse_weights(self, error: RuntimeError) -> None:
        kinds = {str(p.dtype).removeprefix("torch.") for p in self._encoder.parameters() if p.is_floating_point()}
        if kinds - {"float32"}:
            raise QScoreError(
                f"the encoder: expected weights in float32, got {', '.join(sorted(kinds))} ({one_line(error)}); "
                "call encoder.float(), and choose the arithmetic with precision="
            ) from error

    def _run(self, x: Tensor) -> np.ndarray:
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            h = self._encoder(x.to(self._device, non_blocking=True).contiguous(memory_format=self._format))
        found: np.ndarray = h.float().cpu().numpy()
        return found

    def _halve(self) -> None:
        """Go on with half the images; called when the failed attempt has let go of its tensors."""
        if self._images == 1:
            raise QScoreError(f"{self._device} has not the memory for a single image; use another device, or precision")
        self._images //= 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def _move(encoder: Encoder, device: torch.device, memory_format: torch.memory_format) -> None:
    encoder.to(device).to(memory_format=memory_format)
