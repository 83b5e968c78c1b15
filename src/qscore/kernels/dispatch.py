"""The public scan: checks its input and takes the fastest path that fits the array."""

from typing import Any

import numpy as np
from array_api_compat import is_numpy_array, is_torch_array
from jaxtyping import Float

from qscore import core
from qscore._validate import QScoreError, check_epsilon, check_matrix
from qscore.kernels.cpu import scan_cpu
from qscore.kernels.result import Scan

__all__ = ["scan"]

DEVICE_BLOCK_ELEMENTS = 2**24


def scan(H: Float[Any, "n r"], epsilon: float = 4.0, *, two_sided: bool = False, threads: int | None = None) -> Scan:
    """Read representations once and keep what scores are made of.

    Parameters
    ----------
    H : array or tensor of float, shape (n, r)
        Representations: NumPy (in memory or memory-mapped) or PyTorch. float16 and bfloat16 are widened; CPU
        tensors are not copied.
    epsilon : float, default=4.0
        Entries above ``mu_i + epsilon * sigma_i`` are kept; any larger epsilon follows by :meth:`Scan.at`.
    two_sided : bool, default=False
        Keep entries with ``|h_ij - mu_i|`` above the threshold.
    threads : int, optional
        Threads to use, >= 1; by default one per core this process may run on. The result does not depend on it.

    Returns
    -------
    Scan
        Row statistics, L as a sparse table, and counts per feature.

    Raises
    ------
    QScoreError
        If H is not a 2-D floating-point array with rows, epsilon is not positive, or threads is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.zeros((2, 20), dtype=np.float32); H[0, 3] = H[1, 3] = H[1, 5] = 20.0
    >>> found = scan(H, epsilon=2.0)
    >>> found.active, found.deviation, found.indptr
    (array([3, 3, 5], dtype=int32), array([19., 18., 18.]), array([0, 1, 3]))
    """
    check_matrix(H)
    check_epsilon(epsilon)
    if threads is not None and threads < 1:
        raise QScoreError(f"threads: expected a positive number, got {threads}")
    epsilon = float(epsilon)
    if is_numpy_array(H):
        if H.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise QScoreError(f"H: expected float16, float32 or float64, got {H.dtype}")
        H = H.astype(H.dtype.newbyteorder("="), copy=False)
        return scan_cpu(H, epsilon, two_sided=two_sided, threads=threads)
    if not is_torch_array(H):
        raise QScoreError(f"H: expected a NumPy array or a PyTorch tensor, got {type(H).__name__}")
    H = H.detach()
    if H.device.type == "cpu":
        # NumPy has no bfloat16: those rows are widened here.
        H = H if str(H.dtype) in ("torch.float16", "torch.float32", "torch.float64") else H.float()
        return scan_cpu(H.numpy(), epsilon, two_sided=two_sided, threads=threads)
    return _scan_on_device(H, epsilon, two_sided)


def _scan_on_device(H: Any, epsilon: float, two_sided: bool) -> Scan:
    """Scan a tensor where it lies with core's formulas, in blocks that bound the float64 copies."""
    rows = max(1, DEVICE_BLOCK_ELEMENTS // H.shape[1])
    return Scan.concatenate([_scan_block(H[i : i + rows], epsilon, two_sided) for i in range(0, len(H), rows)])


def _scan_block(H: Any, epsilon: float, two_sided: bool) -> Scan:
    H = H.double()
    valid = core.valid_rows(H)
    mean, std = core.moments(H)
    L = core.highly_activating(H, epsilon, two_sided=two_sided)
    deviation = core.deviations(H, two_sided=two_sided)[L]
    H = H.where(valid[:, None], float("nan"))
    peak, l1_norm, l2_norm = H.amax(1), H.abs().sum(1), (H**2).sum(1).sqrt()
    mean, std, peak, l1_norm, l2_norm, active, deviation, valid, sizes, counts = (
        values.cpu().numpy()
        for values in (
            *(mean, std, peak, l1_norm, l2_norm),
            *(L.nonzero()[:, 1].int(), deviation, valid, L.sum(1), core.activation_counts(L)),
        )
    )
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return Scan(mean, std, peak, l1_norm, l2_norm, indptr, active, deviation, counts, valid, epsilon, two_sided)
