"""How kernels are compiled."""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled"]


def compiled(*flags: str) -> Callable[[Any], Any]:
    """Compile without the lock, keeping the result on disk where there is a place for it."""

    def decorate(function: Any) -> Any:
        options: dict[str, Any] = {"nogil": True, "fastmath": set(flags), "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # a read-only installation without a home: compile in each process
            return numba.njit(**options)(function)

    return decorate
