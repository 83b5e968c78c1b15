"""What a batch gives both terms, whether one process holds it or many."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from qscore import core
from qscore._validate import QScoreError, check_matrix
from qscore.regularizer.features import SIGNED_REASON

__all__ = ["Terms", "count_processes", "in_double", "quality_terms", "sparsity", "sum_over_processes"]

Stats = dict[str, Tensor]


@dataclass(frozen=True)
class Terms:
    """Both terms of a batch, unweighted, and what was found on the way."""

    first: Float[Tensor, ""]
    """``sum_i 1[Q_i < alpha] Q_i`` over this process's rows; gradients flow."""
    second: Float[Tensor, ""]
    """``sum_j 1[||H_:j||_1 > beta] ||H_:j||_1``, the norms over this process's rows; gradients flow."""
    n: int
    """Rows of the batch, over all processes: b."""
    n_features: int
    """r."""
    n_full: int
    """Those of them whose L_i ∩ D is not empty."""
    stats: Stats
    """Of the whole batch; detached, 0-dimensional, float64."""


def quality_terms(H: Float[Tensor, "b r"], features: Int64[Tensor, " k"], epsilon: float, world: int) -> Terms:
    """Compute both terms of this process's rows, with the thresholds of the whole batch.

    Parameters
    ----------
    H : Tensor of float64, shape (b, r)
        This process's rows, as `in_double` returns them.
    features : Tensor of int64, shape (k,)
        D, on the same device.
    epsilon : float
        Of L.
    world : int
        Processes that share the batch.

    Raises
    ------
    QScoreError
        In all processes alike, if a value of the batch is negative, NaN or infinite.
    """
    Q = core.q_score(H, features, epsilon) if len(H) else H.sum(1)  # (b,)
    norms = H.abs().sum(0)  # (r,)
    with torch.no_grad():
        local = _row_sums(H) | _quality_sums(H, Q, epsilon)
        totals = sum_over_processes(torch.cat([_vector(local.values()), norms]), world)
        sums, all_norms = dict(zip(local, totals, strict=False)), totals[len(local) :]
        alpha, beta = sums["Q"] / sums["full"].clamp(min=1), all_norms.mean()
        low, high = Q < alpha, all_norms > beta  # noqa: SIM300  # Q is no constant
        below, lifted = sum_over_processes(
            torch.stack([(low & (Q > 0)).sum().double(), torch.where(low, Q, 0.0).sum()]), world
        )
        stats = {
            "q": sums["Q"] / sums["rows"],
            "q_over_sigma": sums["Q/sigma"] / sums["rows"],
            "coverage": sums["full"] / sums["varying"],
            "empty_rows": 1 - sums["full"] / sums["rows"],
            "below_alpha": below / sums["rows"],
            "alpha": alpha.where(sums["full"] > 0, math.nan),
            "beta": beta,
            "above_beta": high.double().mean(),
            "n_active": sums["active"] / sums["rows"],
            **_sparsity(sums, H.shape[1]),
            "first_sum": lifted,
            "second_sum": torch.where(high, all_norms, 0.0).sum(),
        }
    first, second = torch.where(low, Q, 0.0).sum(), torch.where(high, norms, 0.0).sum()
    # A GPU is waited for here, once, with everything else already on its way.
    counts = dict(zip(local, totals[: len(local)].tolist(), strict=True))
    _check_values(counts, H.shape[1], signed=False)
    return Terms(first, second, int(counts["rows"]), H.shape[1], int(counts["full"]), stats)


def sparsity(H: Float[Tensor, "b r"], world: int) -> tuple[int, Stats]:
    """Return the rows of the whole batch, and how sparse they are.

    Raises
    ------
    QScoreError
        In all processes alike, if a value of the batch is NaN or infinite.
    """
    with torch.no_grad():
        local = _row_sums(H)
        totals = sum_over_processes(_vector(local.values()), world)
        sums, counts = (dict(zip(local, values, strict=True)) for values in (totals, totals.tolist()))
        _check_values(counts, H.shape[1], signed=True)
        return int(counts["rows"]), _sparsity(sums, H.shape[1])


def in_double(h: Any, world: int) -> Float[Tensor, "b r"]:
    """Return representations in float64, on a device that has it; gradients flow back.

    Raises
    ------
    QScoreError
        If they are no matrix of floating-point numbers.
    """
    no_share = world > 1 and isinstance(h, Tensor) and h.ndim == 2 and len(h) == 0
    if not no_share:  # the others wait for a process that has no rows of a last batch
        check_matrix(h, name="h")
    if not isinstance(h, Tensor):
        raise QScoreError(f"h: expected a PyTorch tensor, got {type(h).__name__}")
    return (h.cpu() if h.device.type == "mps" else h).double()


def count_processes(distributed: bool) -> int:
    """Return how many processes share a batch."""
    if distributed and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def sum_over_processes(values: Tensor, world: int) -> Tensor:
    """Return the sum of all processes' values; in place where there are several."""
    if world > 1:
        torch.distributed.all_reduce(values)
    return values


def _quality_sums(H: Tensor, Q: Tensor, epsilon: float) -> Stats:
    full = Q > 0  # what lies in L_i is above the mean
    return {
        "full": full.sum(),
        "varying": (H.amax(1) > H.amin(1)).sum(),
        "Q": Q.sum(),
        "Q/sigma": torch.where(full, Q / H.std(1, correction=0), 0.0).sum(),
        "active": core.highly_activating(H, epsilon).sum(),
    }


def _row_sums(H: Tensor) -> Stats:
    root = math.sqrt(H.shape[1])
    l1, l2 = H.abs().sum(1), torch.linalg.vector_norm(H, dim=1)
    directed = l2 > 0
    # Hoyer 2004, section 3.1; `metrics.hoyer_sparsity` is NumPy's.
    hoyer = (root - l1 / torch.where(directed, l2, 1.0)) / (root - 1)
    return {
        "rows": H.new_tensor(len(H)),
        "invalid": (~core.valid_rows(H)).sum(),
        "negative": (H < 0).sum(),
        "directed": directed.sum(),
        "hoyer": torch.where(directed, hoyer, 0.0).sum(),
        "zeros": (H == 0).sum(),
    }


def _sparsity(sums: Stats, r: int) -> Stats:
    return {"hoyer": sums["hoyer"] / sums["directed"], "zeros": sums["zeros"] / (sums["rows"] * r)}


def _vector(values: Iterable[Tensor]) -> Float[Tensor, " m"]:
    return torch.stack([value.double() for value in values])


def _check_values(counts: dict[str, float], r: int, *, signed: bool) -> None:
    n, invalid, negative = (int(counts[name]) for name in ("rows", "invalid", "negative"))
    if not n:
        raise QScoreError("h: expected at least one row, got none in any process")
    if invalid:
        raise QScoreError(
            f"h: {invalid} of {n} rows hold NaN or infinity: the training has diverged; go back to an earlier "
            "checkpoint, and lower the learning rate"
        )
    if negative and not signed:
        raise QScoreError(
            f"h: {negative} of {n * r} values are negative, but {SIGNED_REASON}; take the features after a ReLU"
        )
