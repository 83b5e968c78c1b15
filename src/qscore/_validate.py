"""Argument checks shared by every room, and the one exception users meet."""

import difflib
import importlib
import math
import numbers
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Literal

__all__ = [
    "Epsilon",
    "QScoreError",
    "check_band",
    "check_epsilon",
    "check_features",
    "check_keep",
    "check_matrix",
    "nearest",
    "one_line",
    "require",
    "settle_epsilon",
]

Epsilon = float | Literal["auto", "paper"]
EPSILON_PRESETS = {"paper": 4.0}


class QScoreError(ValueError):
    """Input that cannot be worked with; the message says what was expected, what came, and what to do."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it.

    Parameters
    ----------
    module : str
        Name to import, e.g. ``"torch"``.
    extra : str
        The extra of ``qscore`` that carries it.

    Raises
    ------
    QScoreError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise QScoreError(
            f'this needs the package {module!r}, which is not installed: pip install "qscore[{extra}]"'
        ) from error


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest option, or the empty string."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_line(error: Exception) -> str:
    """Return an exception's first line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check_matrix(H: Any, *, name: str = "H") -> None:
    """Refuse anything but a 2-D floating-point array with rows and at least two features.

    Raises
    ------
    QScoreError
        Naming the shape or the type that came.
    """
    shape = getattr(H, "shape", None)
    if shape is None or not hasattr(H, "dtype"):
        if hasattr(H, "to_numpy"):
            raise QScoreError(
                f"{name}: expected an array of shape (n, r), got {type(H).__name__}; pass {name}.to_numpy()"
            )
        raise QScoreError(f"{name}: expected a 2-D array of shape (n, r), got {type(H).__name__}")
    if len(shape) != 2:
        raise QScoreError(f"{name}: expected a 2-D array of shape (n, r), got shape {tuple(shape)}")
    n, r = shape
    if n == 0:
        raise QScoreError(f"{name}: expected at least one row, got shape {tuple(shape)}")
    if r < 2:
        raise QScoreError(f"{name}: expected at least 2 features, got shape {tuple(shape)}")
    if "float" not in str(getattr(H.dtype, "name", H.dtype)):
        raise QScoreError(f"{name}: expected floating-point values, got {H.dtype}; convert it to float32 first")


def check_features(features: Any, n_features: int) -> Any:
    """Return feature indices, from indices or from a boolean mask over the features.

    Raises
    ------
    QScoreError
        If they are neither, or out of range.
    """
    kind, shape = str(getattr(features, "dtype", type(features).__name__)), tuple(getattr(features, "shape", ()))
    if "bool" in kind and shape == (n_features,):
        return features.nonzero()[0] if not hasattr(features, "is_cuda") else features.nonzero()[:, 0]
    if "int" not in kind or len(shape) != 1:
        raise QScoreError(
            f"features: expected an array of indices, or a mask of {n_features} booleans; got {kind} of shape {shape}"
        )
    if shape[0] and (int(features.min()) < 0 or int(features.max()) >= n_features):
        low, high = int(features.min()), int(features.max())
        raise QScoreError(f"features: expected indices from 0 to {n_features - 1}, got {low} to {high}")
    return features


def settle_epsilon(epsilon: Any) -> float | Literal["auto"]:
    """Return an epsilon as a number, or ``auto``; ``paper`` is 4.0, that of Kalibhat et al. (AAAI 2024).

    Raises
    ------
    QScoreError
        If it is another word, or not a positive number.

    Examples
    --------
    >>> settle_epsilon("paper"), settle_epsilon("auto"), settle_epsilon(3)
    (4.0, 'auto', 3.0)
    """
    if isinstance(epsilon, str):
        if epsilon == "auto":
            return "auto"
        if epsilon not in EPSILON_PRESETS:
            raise QScoreError(f"epsilon: expected a positive number, 'auto' or 'paper', got {epsilon!r}")
        return EPSILON_PRESETS[epsilon]
    check_epsilon(epsilon)
    return float(epsilon)


def check_epsilon(epsilon: Any, *, n_features: int | None = None) -> None:
    """Refuse an epsilon that is not positive, or that no value of a row of ``n_features`` can exceed.

    In a row of r values no z-score exceeds ``sqrt(r - 1)``, so ``r <= epsilon**2 + 1`` leaves every set of
    highly activating features empty.

    Raises
    ------
    QScoreError
        Naming the bound, and the cure.
    """
    number = isinstance(epsilon, numbers.Real) and not isinstance(epsilon, bool)
    if not number or not math.isfinite(epsilon) or epsilon <= 0:
        raise QScoreError(f"epsilon: expected a positive number, got {epsilon!r}")
    if n_features is not None and n_features <= epsilon**2 + 1:
        bound = math.sqrt(max(n_features - 1, 0))
        raise QScoreError(
            f"epsilon: with {n_features} features no value lies more than {bound:.2f} standard deviations above its "
            f"row's mean, so epsilon = {epsilon:g} leaves every row empty; use epsilon below {bound:.2f} or 'auto'"
        )


def check_band(lower: float, upper: float) -> None:
    """Refuse percentile bounds outside ``0 <= lower < upper <= 1``.

    Raises
    ------
    QScoreError
        Naming both values.
    """
    numbers_given = all(isinstance(bound, numbers.Real) for bound in (lower, upper))
    if not numbers_given or not 0.0 <= lower < upper <= 1.0:
        raise QScoreError(f"lower, upper: expected 0 <= lower < upper <= 1, got lower={lower!r}, upper={upper!r}")


def check_keep(keep: Any) -> None:
    """Refuse a share of features to keep outside (0, 1].

    Raises
    ------
    QScoreError
        Naming the value.
    """
    number = isinstance(keep, numbers.Real) and not isinstance(keep, bool)
    if not number or not 0.0 < keep <= 1.0:
        raise QScoreError(f"keep: expected a share of the features in (0, 1], got {keep!r}")
