import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import metrics as reference
from scipy.stats import ortho_group

from qscore import QScoreError
from qscore.metrics import alignment, hoyer_sparsity, mean_interval, uniformity

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_all_equal_the_definitions(seed):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(int(rng.integers(2, 30)), int(rng.integers(2, 9))))
    assert uniformity(H) == pytest.approx(reference.uniformity(H), rel=1e-9)
    assert hoyer_sparsity(H).mean() == pytest.approx(reference.hoyer(H), rel=1e-9, abs=1e-12)
    image = np.sort(rng.integers(0, 5, len(H)))
    if len(np.unique(image)) < len(H):
        assert alignment(H, image).mean() == pytest.approx(reference.alignment(H, image), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_rotation_and_the_length_of_rows_change_nothing(seed):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(20, 6))
    moved = (H @ ortho_group.rvs(6, random_state=seed)) * rng.uniform(0.1, 10, size=(20, 1))
    assert uniformity(moved) == pytest.approx(uniformity(H), rel=1e-9)
    image = np.repeat(np.arange(10), 2)
    np.testing.assert_allclose(alignment(moved, image), alignment(H, image), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_sparsity_ignores_length_sign_and_order_of_features(seed):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(20, 6))
    moved = H[:, rng.permutation(6)] * rng.uniform(0.1, 10, size=(20, 1)) * rng.choice([-1.0, 1.0], size=(20, 6))
    np.testing.assert_allclose(hoyer_sparsity(moved), hoyer_sparsity(H), rtol=1e-9, atol=1e-12)


def test_uniformity_of_rows_that_are_known():
    assert uniformity(np.eye(9) * 5) == pytest.approx(-4)
    assert uniformity(np.ones((9, 4))) == pytest.approx(0, abs=1e-12)
    assert uniformity(np.array([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)
    twice = np.concatenate([np.eye(5), np.eye(5)])  # of 45 pairs 5 are equal, 40 orthogonal
    assert uniformity(twice) == pytest.approx(math.log((5 + 40 * math.exp(-4)) / 45))
    assert uniformity(np.eye(4), t=0.5) == pytest.approx(-1)


def test_uniformity_compares_every_pair_of_more_rows_than_a_block(rng):
    H = rng.normal(size=(1100, 3))
    Z = H / np.linalg.norm(H, axis=1, keepdims=True)
    squared = ((Z[:, None] - Z[None]) ** 2).sum(2)[np.triu_indices(1100, 1)]
    assert uniformity(H) == pytest.approx(math.log(np.exp(-2 * squared).mean()), rel=1e-10)


def test_sparsity_of_k_equal_features():
    for r, k in ((16, 1), (16, 4), (16, 16), (100, 25)):
        row = np.zeros((1, r))
        row[0, :k] = -7.0
        assert hoyer_sparsity(row)[0] == pytest.approx((math.sqrt(r) - math.sqrt(k)) / (math.sqrt(r) - 1), abs=1e-12)


def test_alignment_leaves_out_single_views_and_rows_without_direction():
    views = np.array([[1.0, 0], [1, 0], [0, 1], [5, 0], [0, 0], [np.nan, 1], [1, 1], [-1, -1]])
    image = np.array(["a", "a", "a", "b", "c", "c", "d", "d"])
    np.testing.assert_allclose(alignment(views, image), [4 / 3, 4.0])
    assert alignment(views[3:5], image[3:5]).shape == alignment(views[4:5], image[4:5]).shape == (0,)


def test_rows_without_direction_are_nan_or_left_out():
    H = np.array([[0.0, 0.0], [np.inf, 1.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(np.isnan(hoyer_sparsity(H)), [True, True, False, False])
    assert uniformity(H) == pytest.approx(-4) and math.isnan(uniformity(H[:3]))


def test_the_largest_and_the_smallest_numbers_keep_their_direction():
    H = np.array([[1e308, 1e308], [5e-324, 0.0]])
    assert hoyer_sparsity(H).tolist() == pytest.approx([0.0, 1.0]) and -4 < uniformity(H) < 0


def test_bad_parameters_are_refused():
    with pytest.raises(QScoreError, match="t: expected a positive number, got 0"):
        uniformity(np.eye(3), t=0.0)
    with pytest.raises(QScoreError, match=r"image: expected one for each of 3 views, got shape \(2,\)"):
        alignment(np.eye(3), np.zeros(2))


def test_intervals_cover_the_mean_as_often_as_promised():
    for n, runs in ((60, 200), (10_001, 200)):
        inside = sum(
            mean_interval(np.random.default_rng(seed).exponential(size=n), resamples=300, seed=seed).contains(1.0)
            for seed in range(runs)
        )
        assert 0.90 <= inside / runs <= 0.99


def test_the_normal_interval_continues_the_bootstrap():
    values = np.random.default_rng(0).exponential(size=10_001)
    normal, bootstrap = mean_interval(values), mean_interval(values[:-1])
    assert normal.low == pytest.approx(bootstrap.low, abs=2e-3) and normal.high == pytest.approx(
        bootstrap.high, abs=2e-3
    )


def test_intervals_of_few_or_equal_values():
    assert math.isnan(mean_interval(np.empty(0)).value)
    one = mean_interval(np.array([3.0]))
    assert one.value == 3.0 and math.isnan(one.low) and math.isnan(one.high)
    equal = mean_interval(np.full(20, 3.0), resamples=50)
    assert (equal.value, equal.low, equal.high) == (3.0, 3.0, 3.0)
