import numpy as np
import pytest
from scipy import stats

from qscore.kernels import sampled_rows

MASK = 2**64 - 1


def expected_hash(bits, weights):
    """The same hash in Python's integers."""
    value = sum((int(b) + 1) * int(w) for b, w in zip(bits, weights, strict=True)) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_sample_is_a_property_of_the_rows(rng, dtype):
    H = rng.gamma(0.2, size=(5000, 20)).astype(dtype) * (rng.random((5000, 20)) < 0.3).astype(dtype)
    chosen = sampled_rows(H, 0.3)
    weights = np.random.default_rng(0).integers(0, 2**64, size=20, dtype=np.uint64) | np.uint64(1)
    bits = H.view(f"u{H.dtype.itemsize}")
    assert chosen[:50].tolist() == [expected_hash(row, weights) < 0.3 * 2**64 for row in bits[:50]]
    order = rng.permutation(5000)
    np.testing.assert_array_equal(sampled_rows(H[order], 0.3), chosen[order])
    np.testing.assert_array_equal(sampled_rows(np.asfortranarray(H), 0.3), chosen)
    distinct = len(np.unique(H, axis=0))
    assert distinct > 4500
    assert stats.binomtest(int(chosen.sum()), 5000, 0.3).pvalue > 1e-4
    # What is sampled looks like the rest.
    assert stats.ks_2samp(H[chosen].sum(1), H[~chosen].sum(1)).pvalue > 1e-4


def test_all_rows_of_a_small_table_are_taken():
    assert sampled_rows(np.zeros((3, 2), np.float32), 1.5).all()
