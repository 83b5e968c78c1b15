"""Where a probe computes: in NumPy, or on a GPU through torch tensors; torch is imported for that alone."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn

from qscore._validate import QScoreError, require

__all__ = ["Placement", "place"]

WORTH_A_GPU = 1e12  # operations: half a minute on a core; below it, importing torch alone may take as long
SWITCH = "SCIPY_ARRAY_API"


@dataclass(frozen=True)
class Placement:
    """NumPy arrays, or tensors on a torch device."""

    device: Any = None
    """``torch.device``, or None for NumPy."""

    @property
    def kind(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return "cpu" if self.device is None else str(self.device.type)

    @property
    def free_bytes(self) -> int | None:
        """Free memory of a GPU; None elsewhere."""
        if self.kind != "cuda":
            return None
        free: int = require("torch", "vision").cuda.mem_get_info(self.device)[0]
        return free

    def put(self, array: np.ndarray) -> Any:
        """Bring an array here."""
        return array if self.device is None else require("torch", "vision").from_numpy(array).to(self.device)

    def take(self, array: Any) -> np.ndarray:
        """Return an array from here as NumPy's."""
        found: np.ndarray = array if self.device is None else array.cpu().numpy()
        return found

    @contextmanager
    def dispatched(self) -> Iterator[None]:
        """Let scikit-learn work on tensors while the block lasts.

        It asks for an environment variable that SciPy reads when it is imported. The estimators used here call SciPy
        with NumPy arrays alone, so that it need not be set from the start, and is only while they run.
        """
        if self.device is None:
            yield
            return
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = "1"
        try:
            with sklearn.config_context(array_api_dispatch=True):
                yield
        finally:
            if before is None:
                del os.environ[SWITCH]
            else:
                os.environ[SWITCH] = before


def place(device: str, operations: float) -> Placement:
    """Settle where a piece of work is done.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` takes a GPU where there is one and the work is worth it.
    operations : float
        Floating-point operations of the work.

    Raises
    ------
    QScoreError
        If the device is unknown or not there, or torch is not installed.
    """
    if device == "cpu" or (device == "auto" and (operations < WORTH_A_GPU or not importlib.util.find_spec("torch"))):
        return Placement()
    require("torch", "vision")
    from qscore.embedding.network import pick_device

    chosen = pick_device(device)
    if chosen.type == "cpu":
        return Placement()
    if chosen.type != "cuda":
        raise QScoreError(f"device {device!r}: probes run on cpu or cuda")
    return Placement(chosen)
