import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import paper

from qscore import QScoreError, core, scan
from qscore.kernels import Scan, automatic_epsilon, cpu, dispatch


def awkward_table(rng, n=300, r=70, dtype=np.float32):
    """ReLU-like rows with exact ties, constant rows, negative values and invalid rows among them."""
    H = np.round(rng.gamma(0.4, size=(n, r)) * (rng.random((n, r)) < 0.5), 1)
    H[3], H[4] = 0.0, 0.1
    H[5:20] -= 0.7
    H[7, 2], H[9, 3], H[11, 0], H[12, -1] = np.nan, np.inf, -np.inf, np.nan
    return H.astype(dtype)


def assert_equals_core(found, H, epsilon, two_sided):
    H = np.asarray(H)
    mean, std = core.moments(H)
    L = core.highly_activating(H, epsilon, two_sided=two_sided)
    valid = core.valid_rows(H)
    wide = np.where(valid[:, None], H.astype(np.float64), np.nan)
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.active, np.nonzero(L)[1])
    np.testing.assert_array_equal(found.n_active, L.sum(1))
    np.testing.assert_array_equal(found.counts, core.activation_counts(L))
    np.testing.assert_array_equal(found.max, wide.max(1))
    for name, expected in {
        "mean": mean,
        "std": std,
        "l1_norm": np.abs(wide).sum(1),
        "l2_norm": np.sqrt((wide**2).sum(1)),
    }.items():
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(found.deviation, core.deviations(H, two_sided=two_sided)[L], rtol=1e-12)
    D = core.discriminative_features(found.counts)
    np.testing.assert_allclose(
        found.q_score(D), core.q_score(H, D, epsilon, two_sided=two_sided), rtol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("epsilon", [1.0, 2.5, 4.0])
def test_scan_equals_core(rng, dtype, two_sided, epsilon):
    H = awkward_table(rng, dtype=dtype)
    assert_equals_core(scan(H, epsilon, two_sided=two_sided), H, epsilon, two_sided)


@pytest.mark.parametrize("r", [2, 3, 31, 32, 33, 64, 1000])
def test_scan_equals_core_at_any_width(rng, r):
    H = rng.gamma(0.3, size=(20, r)).astype(np.float32)
    assert_equals_core(scan(H, 1.2), H, 1.2, False)


def test_scan_equals_the_naive_loop(rng):
    H = awkward_table(rng, n=40, r=33)
    found = scan(H, 2.0)
    for i, row in enumerate(H.tolist()):
        active = found.active[found.indptr[i] : found.indptr[i + 1]]
        assert active.tolist() == sorted(paper.highly_activating(row, 2.0))


def assert_identical(a: Scan, b: Scan):
    for name in ("mean", "std", "max", "l1_norm", "l2_norm", "indptr", "active", "deviation", "counts", "valid"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=25, deadline=None)
@given(threads=st.sampled_from([1, 2, 8]), block=st.integers(1, 400), cuts=st.lists(st.integers(1, 299), max_size=4))
def test_result_is_bit_equal_for_any_threads_blocks_and_chunks(threads, block, cuts):
    H = awkward_table(np.random.default_rng(1))
    whole = scan(H, 2.0, threads=1)
    edges = [0, *sorted(set(cuts)), len(H)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "BLOCK_BYTES", block * H.shape[1] * 4)
        parts = [scan(H[a:b], 2.0, threads=threads) for a, b in itertools.pairwise(edges)]
    assert_identical(Scan.concatenate(parts), whole)


@pytest.mark.parametrize("layout", ["strided", "fortran", "unaligned"])
def test_memory_layout_does_not_matter(rng, layout):
    H = awkward_table(rng)
    if layout == "strided":
        other = np.repeat(H, 2, axis=1)[:, ::2]
    elif layout == "fortran":
        other = np.asfortranarray(H)
    else:
        buffer = np.zeros(H.nbytes + 1, np.uint8)
        other = buffer[1:].view(np.uint8)[: H.nbytes].view(np.float32).reshape(H.shape)
        other[:] = H
    assert_identical(scan(other, 2.0), scan(H, 2.0))


def test_torch_cpu_tensors_pass_without_a_copy(rng, monkeypatch):
    H = torch.as_tensor(awkward_table(rng))
    seen = []
    original = dispatch.scan_cpu
    monkeypatch.setattr(dispatch, "scan_cpu", lambda A, *a, **k: seen.append(A) or original(A, *a, **k))
    assert_identical(scan(H.requires_grad_(), 2.0), original(H.detach().numpy(), 2.0, two_sided=False, threads=1))
    assert seen[0].ctypes.data == H.data_ptr()


def test_bfloat16_is_widened(rng):
    H = torch.as_tensor(awkward_table(rng)).bfloat16()
    assert_identical(scan(H, 2.0), scan(H.float(), 2.0))


@pytest.mark.parametrize("two_sided", [False, True])
def test_device_path_equals_core(rng, two_sided, monkeypatch):
    monkeypatch.setattr(dispatch, "DEVICE_BLOCK_ELEMENTS", 700)
    H = awkward_table(rng)
    assert_equals_core(dispatch._scan_on_device(torch.as_tensor(H), 2.0, two_sided), H, 2.0, two_sided)


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_larger_epsilon_follows_without_the_embeddings(rng, two_sided):
    H = awkward_table(rng)
    floor = scan(H, 1.5, two_sided=two_sided)
    for epsilon in (1.5, 1.6, 2.0, 3.9):
        assert_identical(floor.at(epsilon), scan(H, epsilon, two_sided=two_sided))
    with pytest.raises(QScoreError, match=r"keeps entries above 1\.5, got 1"):
        floor.at(1.0)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("r", [4, 8, 70])
def test_automatic_epsilon_from_blocks_equals_core(rng, two_sided, r):
    H = awkward_table(rng, r=r)
    blocks = [scan(H[i : i + 77], 1.5, two_sided=two_sided) for i in range(0, len(H), 77)]
    epsilon, covered = automatic_epsilon(lambda: blocks, r)
    assert epsilon == core.automatic_epsilon(H, two_sided=two_sided)
    assert covered or epsilon == 1.5


def test_automatic_epsilon_says_when_nothing_covers():
    H = np.zeros((4, 8), dtype=np.float32)
    assert automatic_epsilon(lambda: [scan(H, 1.5)], 8) == (1.5, False)


def test_scans_that_do_not_belong_together_are_refused(rng):
    H = awkward_table(rng)
    with pytest.raises(QScoreError, match=r"agree in features.*\(70, 2, False\) and \(70, 3, False\)"):
        Scan.concatenate([scan(H, 2.0), scan(H, 3.0)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scan(np.zeros(3)), "2-D array"),
        (lambda: scan(np.zeros((3, 4), dtype=np.int64)), "floating-point"),
        (lambda: scan(np.zeros((3, 4)), epsilon=0), "epsilon: expected a positive number"),
        (lambda: scan(np.zeros((3, 4)), threads=0), "threads: expected a positive number"),
        (lambda: scan([[1.0]]), "got list"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(QScoreError, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("nudge", [1 - 1e-13, 1 + 1e-13])
def test_thresholds_that_touch_a_value_are_decided_as_core_decides(dtype, two_sided, nudge):
    rng = np.random.default_rng(7)
    for _ in range(60):
        H = rng.normal(size=(1, 70)).astype(dtype)
        mu, sigma = core.moments(H)
        j = int(np.argsort(-np.abs(H[0]) if two_sided else -H[0])[5])
        deviation = abs(float(H[0, j]) - mu[0])
        epsilon = deviation / (sigma[0] * (1 + core.TIE_MARGIN)) * nudge
        L = core.highly_activating(H, epsilon, two_sided=two_sided)
        assert L[0, j] == (nudge < 1)
        np.testing.assert_array_equal(scan(H, epsilon, two_sided=two_sided).active, np.flatnonzero(L[0]))


def test_other_types_and_byte_orders(rng):
    H = awkward_table(rng)
    assert_identical(scan(H.astype(">f4"), 2.0), scan(H, 2.0))
    with pytest.raises(QScoreError, match="expected float16, float32 or float64, got float128"):
        scan(H.astype(np.longdouble), 2.0)


def test_a_data_frame_is_refused_with_the_cure():
    import pandas as pd

    with pytest.raises(QScoreError, match=r"got DataFrame; pass H.to_numpy\(\)"):
        scan(pd.DataFrame(np.zeros((3, 30))))


def test_without_a_place_for_compiled_code_the_scan_still_runs(tmp_path):
    import subprocess
    import sys

    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np, qscore
print(len(qscore.scan(np.ones((2, 20))).mean))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"
