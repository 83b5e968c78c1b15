import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import compression, paper

from qscore import core


def tables(max_rows=6, max_features=24, dtype=np.float32):
    # Values on a grid: many exact ties, which is where implementations disagree.
    elements = st.integers(0, 12).map(lambda k: k / 4)
    shapes = st.tuples(st.integers(1, max_rows), st.integers(2, max_features))
    return shapes.flatmap(lambda shape: hnp.arrays(dtype, shape, elements=elements))


backends = pytest.mark.parametrize("backend", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
epsilons = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 4.0])


@backends
@settings(max_examples=150, deadline=None)
@given(H=tables(), epsilon=epsilons, two_sided=st.booleans())
def test_sets_rates_and_scores_equal_the_naive_loops(backend, H, epsilon, two_sided):
    rows = H.tolist()
    array = backend(H)
    L = np.asarray(core.highly_activating(array, epsilon, two_sided=two_sided))
    rates = core.activation_rates(array, epsilon, two_sided=two_sided)
    features = core.discriminative_features(rates)
    scores = np.asarray(core.q_score(array, features, epsilon, two_sided=two_sided))

    expected_rates = paper.activation_rates(rows, epsilon, two_sided)
    expected_features = paper.discriminative_features(np.asarray(rates).tolist())
    assert [set(np.flatnonzero(row)) for row in L] == [paper.highly_activating(row, epsilon, two_sided) for row in rows]
    np.testing.assert_allclose(np.asarray(rates), expected_rates, rtol=1e-12)
    assert np.asarray(features).tolist() == expected_features
    np.testing.assert_allclose(
        scores, [paper.q_score(row, expected_features, epsilon, two_sided) for row in rows], rtol=1e-12
    )
    np.testing.assert_allclose(np.asarray(core.q_score_v1(array)), [paper.q_score_v1(row) for row in rows], rtol=1e-12)
    assert np.asarray(core.activation_counts(core.highly_activating(array, epsilon))).sum() == sum(
        len(paper.highly_activating(row, epsilon)) for row in rows
    )


@backends
@settings(max_examples=60, deadline=None)
@given(H=tables(max_rows=12), two_sided=st.booleans())
def test_automatic_epsilon_equals_the_naive_loop(backend, H, two_sided):
    assert core.automatic_epsilon(backend(H), two_sided=two_sided) == paper.automatic_epsilon(
        H.tolist(), two_sided=two_sided
    )


@pytest.mark.parametrize("k", range(1, 8))
def test_equal_peaks_that_lie_on_the_threshold_stay_out(k):
    # k peaks among r - k zeros have z-score sqrt((r - k) / k): exactly epsilon when r = k (epsilon^2 + 1).
    epsilon = 3.0
    H = np.zeros((1, 10 * k))
    H[0, :k] = 0.1
    assert not core.highly_activating(H, epsilon).any()
    assert core.highly_activating(np.pad(H, ((0, 0), (0, 1))), epsilon).sum() == k


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_invalid_rows_have_no_score_and_poison_nothing(relu_table, bad):
    H = relu_table.copy()
    H[7, 3] = bad
    others = np.delete(H, 7, axis=0)
    np.testing.assert_array_equal(core.activation_rates(H, 3.0), core.activation_rates(others, 3.0))
    D = core.discriminative_features(core.activation_rates(H, 3.0))
    for score in (core.q_score(H, D, 3.0), core.q_score_v1(H)):
        assert math.isnan(score[7]) and np.isfinite(np.delete(score, 7)).all()
    assert core.automatic_epsilon(H) == core.automatic_epsilon(others)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_constant_rows_score_zero_exactly(dtype):
    H = np.full((1, 97), 0.1, dtype=dtype)
    assert core.moments(H)[1] == 0
    assert core.q_score(H, np.arange(97), 1.0) == 0
    assert core.q_score_v1(H) == 0


def test_band_is_rounded_before_floor_and_ceil():
    assert core.rank_band(100, 0.50, 0.55) == (50, 55)
    assert core.rank_band(20, 0.50, 0.95) == (10, 19)
    assert core.rank_band(7, 0.50, 0.95) == (3, 7)


def test_ties_in_the_rate_rank_by_index_and_silent_features_are_dropped():
    rates = np.array([0.0, 0.5, 0.5, 0.5, 0.0, 0.5])
    assert core.discriminative_features(rates, 0.0, 0.5).tolist() == [1]
    assert core.discriminative_features(rates, 0.5, 1.0).tolist() == [2, 3, 5]


@backends
@settings(max_examples=150, deadline=None)
@given(counts=st.lists(st.integers(0, 4), min_size=2, max_size=300), percent=st.integers(1, 100))
def test_kept_features_equal_exact_arithmetic(backend, counts, percent):
    kept = np.asarray(core.kept_features(backend(np.array(counts)), percent / 100))
    assert kept.tolist() == compression.kept_features(counts, percent / 100)


def test_kept_features_contain_the_band_and_some_that_never_fire():
    counts = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2, 3] * 10)
    assert len(core.kept_features(counts, 0.6)) == 60 and len(core.kept_features(counts, 1.0)) == 100
    assert (counts[core.kept_features(counts, 0.6)] == 0).any()
    D = core.discriminative_features(counts)
    assert set(D) < set(core.kept_features(counts, 0.45)) < set(core.kept_features(counts, 0.6))


@settings(max_examples=50, deadline=None)
@given(H=tables(), exponent=st.integers(-40, 40))
def test_scaling_by_powers_of_two_scales_q_and_changes_no_set(H, exponent):
    factor = 2.0**exponent
    D = np.arange(H.shape[1])
    np.testing.assert_array_equal(core.highly_activating(H, 1.5), core.highly_activating(H * factor, 1.5))
    np.testing.assert_array_equal(core.q_score(H, D, 1.5) * factor, core.q_score(H.astype(float) * factor, D, 1.5))


@settings(max_examples=50, deadline=None)
@given(H=tables(max_rows=10), cut=st.integers(0, 10), seed=st.integers(0, 5))
def test_counts_merge_by_addition_and_rows_may_be_permuted(H, cut, seed):
    L = core.highly_activating(H, 2.0)
    merged = core.activation_counts(L[:cut]) + core.activation_counts(L[cut:])
    np.testing.assert_array_equal(core.activation_counts(L), merged)
    order = np.random.default_rng(seed).permutation(len(H))
    np.testing.assert_array_equal(core.activation_rates(H, 2.0), core.activation_rates(H[order], 2.0))


@pytest.mark.parametrize("two_sided", [False, True])
def test_gradient_equals_the_formula_by_hand_and_finite_differences(rng, two_sided):
    H = torch.tensor(rng.gamma(0.3, size=(5, 30)), dtype=torch.float64, requires_grad=True)
    D = torch.arange(0, 30, 2)
    (gradient,) = torch.autograd.grad(core.q_score(H, D, 1.5, two_sided=two_sided).sum(), H)
    for i, row in enumerate(H.tolist()):
        chosen = paper.highly_activating(row, 1.5, two_sided) & set(D.tolist())
        mu, _ = paper.mean_and_std(row)
        signs = {j: (1.0 if row[j] > mu else -1.0) for j in chosen} if two_sided else dict.fromkeys(chosen, 1.0)
        drift = sum(signs.values()) / len(row) / max(len(chosen), 1)
        expected = [signs.get(j, 0.0) / max(len(chosen), 1) - drift for j in range(30)]
        np.testing.assert_allclose(gradient[i], expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: core.q_score(x, D, 1.5, two_sided=two_sided), H)


def test_v1_score_has_a_finite_gradient_on_a_constant_row():
    H = torch.ones(2, 8, dtype=torch.float64)
    H[1, 0] = 3.0
    H.requires_grad_()
    core.q_score_v1(H).sum().backward()
    assert torch.isfinite(H.grad).all() and H.grad[1].abs().sum() > 0


def test_golden_values():
    H = np.zeros((2, 32), dtype=np.float32)
    H[0, 5], H[1, 9] = 32.0, 64.0
    rates = core.activation_rates(H)
    assert rates[[5, 9]].tolist() == [0.5, 0.5] and rates.sum() == 1.0
    assert core.discriminative_features(rates, 0.5, 1.0).tolist() == [5, 9]
    assert core.q_score(H, np.array([5, 9])).tolist() == [31.0, 62.0]
    np.testing.assert_allclose(core.z_score_v1(H), math.sqrt(31))


def test_meta_the_shape_checker_catches_a_wrong_shape():
    with pytest.raises(Exception, match="Type-check error"):
        core.valid_rows(np.zeros(3))


@backends
@pytest.mark.parametrize("n", [1, 2, 9, 10, 1000])
def test_robust_scaling_equals_the_naive_loop(rng, backend, n):
    H = np.round(rng.normal(size=(n + 1, 12)), 1) * 10.0 ** rng.integers(-3, 4, size=12)
    H[:, 3] = 0.1  # constant: scale 0, whatever its sums round to
    H[:, 4], H[0, 4] = 1.0, 5.0  # MAD 0, standard deviation positive
    H[-1, 0] = np.inf
    center, scale = core.robust_scaling(backend(H))
    expected_center, expected_scale = paper.robust_scaling(H.tolist())
    np.testing.assert_allclose(np.asarray(center), expected_center, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(scale), expected_scale, rtol=1e-12, atol=1e-15)
    assert np.asarray(scale)[3] == 0
    H[0, 5] = 1e9
    scaled = np.asarray(core.apply_scaling(backend(H), center, scale))
    expected = [paper.apply_scaling(row, np.asarray(center), np.asarray(scale)) for row in H.tolist()]
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)
    assert np.isnan(scaled[-1]).all()


@backends
def test_features_may_be_a_mask_and_nothing_odd(backend):
    H = np.zeros((1, 26))
    H[0, 7] = 4.0
    expected = core.q_score(H, np.array([7]))
    mask = backend(np.arange(26) == 7)
    np.testing.assert_array_equal(np.asarray(core.q_score(backend(H), mask)), expected)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.array([-13]), "indices from 0 to 25, got -13 to -13"),
        (np.array([25, 26]), "indices from 0 to 25, got 25 to 26"),
        (np.array([7.9]), "an array of indices, or a mask of 26 booleans; got float64"),
        (np.ones(25, dtype=bool), "a mask of 26 booleans; got bool of shape"),
    ],
)
def test_features_out_of_range_are_refused(features, message):
    from qscore.kernels import scan

    found = scan(np.random.default_rng(0).random((3, 26)), 1.0)
    with pytest.raises(ValueError, match=message):
        found.q_score(features)


def test_robust_scaling_does_not_depend_on_the_order_of_rows(rng):
    H = rng.gamma(0.2, size=(201, 40)) * (rng.random((201, 40)) < 0.3)  # mostly MAD 0
    expected = core.robust_scaling(H)
    for order in (rng.permutation(201) for _ in range(5)):
        for got, wanted in zip(core.robust_scaling(H[order]), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
