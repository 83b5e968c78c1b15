import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ridge as reference
from sklearn.linear_model import RidgeClassifier

from qscore.evaluate.ridge import (
    class_moments,
    correct_along,
    merge_moments,
    ordered_path,
    principal_path,
    ridge_weights,
    row_batches,
)


def draw(rng, n=90, r=12, classes=4):
    codes = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    H = rng.gamma(0.5, size=(n, r))
    H[np.arange(n), codes] += 0.7
    return H.astype(np.float32), codes


def moments_of(H, codes, classes=4):
    return class_moments(row_batches(H, np.arange(len(H)), codes), classes)


def along(path, X, size):
    return path.project(X)[:, :size] @ path.values[:size] + path.shares


def test_moments_equal_their_definition_in_whatever_batches(rng):
    H, codes = draw(rng)
    X, Y = H.astype(float), np.eye(4)[codes]
    for cuts in ([], [1], [30, 31, 60]):
        found = class_moments(zip(np.split(X, cuts), np.split(codes, cuts), strict=True), 4)
        np.testing.assert_allclose(found.mean, X.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.gram, (X - X.mean(0)).T @ (X - X.mean(0)), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.cross, (X - X.mean(0)).T @ (Y - Y.mean(0)), rtol=1e-10, atol=1e-10)
        assert found.counts.tolist() == Y.sum(0).tolist() and found.shares.sum() == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(5, 85))
def test_merging_equals_moments_of_all_rows(seed, cut):
    H, codes = draw(np.random.default_rng(seed))
    parts = [moments_of(H[rows], codes[rows]) for rows in (slice(cut), slice(cut, None))]
    whole = moments_of(H, codes)
    for merged in (merge_moments(*parts), merge_moments(*parts[::-1])):
        for name in ("counts", "mean", "gram", "cross"):
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_large_common_offset_costs_no_digits(rng):
    H, codes = draw(rng)
    X = np.round(H.astype(float), 3)
    near, far = moments_of(X, codes), moments_of(X + 2.0**26, codes)
    np.testing.assert_allclose(far.gram, near.gram, rtol=1e-5)
    np.testing.assert_allclose(ridge_weights(far, 0.3), ridge_weights(near, 0.3), atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-4, 0.5, 30.0])
def test_weights_equal_least_squares_and_scikit_learn(rng, penalty):
    H, codes = draw(rng)
    moments = moments_of(H, codes)
    W = ridge_weights(moments, penalty)
    expected, intercepts = reference.fit(H, codes, 4, penalty)
    np.testing.assert_allclose(W, expected, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(moments.shares - moments.mean @ W, intercepts, rtol=1e-7, atol=1e-10)
    sklearn = RidgeClassifier(alpha=penalty, solver="cholesky").fit(H.astype(float), codes)  # targets -1 and 1
    np.testing.assert_allclose(2 * W.T, sklearn.coef_, rtol=1e-7, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(1e-3, 10.0))
def test_every_length_of_a_path_equals_ridge_on_those_columns(seed, size, penalty):
    rng = np.random.default_rng(seed)
    (H, codes), (test, _) = draw(rng), draw(rng)
    order = rng.permutation(12)
    path = ordered_path(moments_of(H, codes), order, penalty)
    columns = order[:size]
    expected = reference.scores(H[:, columns], codes, 4, penalty, test[:, columns])
    np.testing.assert_allclose(along(path, test, size), expected, atol=1e-8)


@pytest.mark.parametrize("size", [1, 3, 7, 12])
def test_every_number_of_components_equals_ridge_on_them(rng, size):
    (H, codes), (test, _) = draw(rng), draw(rng)
    path = principal_path(moments_of(H, codes), 0.2)
    train_components, components = reference.principal_components(H.astype(float), test, size)
    expected = reference.scores(train_components, codes, 4, 0.2, components)
    np.testing.assert_allclose(along(path, test, size), expected, atol=1e-9)


def test_all_components_and_all_features_are_the_same_classifier(rng):
    (H, codes), (test, _) = draw(rng), draw(rng)
    moments = moments_of(H, codes)
    paths = [principal_path(moments, 0.2), ordered_path(moments, rng.permutation(12), 0.2)]
    np.testing.assert_allclose(*(along(path, test, 12) for path in paths), atol=1e-10)


def test_two_points_by_hand():
    # x - m = -1, +1 and y - s = (1/2, -1/2), (-1/2, 1/2), so that W = B / (2 + penalty)
    moments = class_moments([(np.array([[0.0], [2.0]]), np.array([0, 1]))], 2)
    assert moments.gram.tolist() == [[2.0]] and moments.cross.tolist() == [[-1.0, 1.0]]
    assert ridge_weights(moments, 2.0).tolist() == pytest.approx(np.array([[-0.25, 0.25]]))


def test_rows_are_right_where_the_definition_says_so_over_batches(rng, monkeypatch):
    monkeypatch.setattr("qscore.evaluate.ridge.BATCH", 13)
    (H, codes), (test, truth) = draw(rng), draw(rng)
    truth[5] = -1
    order, rows = rng.permutation(12), np.arange(2, 88)
    found = correct_along(ordered_path(moments_of(H, codes), order, 0.4), test, rows, truth[rows], [2, 5, 5, 12])
    for right, size in zip(found, [2, 5, 5, 12], strict=True):
        columns = order[:size]
        scores = reference.scores(H[:, columns], codes, 4, 0.4, test[:, columns])
        np.testing.assert_array_equal(right, (scores.argmax(1) == truth)[rows])
    assert not found[:, 3].any()


def test_fewer_rows_than_features_and_constant_features(rng):
    H, codes = draw(rng, n=9, r=30)
    H[:, 4] = 2.5
    test, _ = draw(rng, n=20, r=30)
    path = ordered_path(moments_of(H, codes), np.arange(30), 0.05)
    np.testing.assert_allclose(along(path, test, 30), reference.scores(H, codes, 4, 0.05, test), atol=1e-8)
    assert not ridge_weights(moments_of(H, codes), 0.05)[4].any()
