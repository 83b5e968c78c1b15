import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qscore import QScoreError
from qscore.metrics import Covariance


def of(H, cuts=()):
    found = Covariance.empty(H.shape[1])
    for part in np.split(H, sorted(cuts)):
        found = found.add(part) if len(part) else found
    return found


def assert_same(a, b):
    assert (a.n, a.n_invalid) == (b.n, b.n_invalid)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=1e-10, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 30), max_size=6))
def test_any_chunks_equal_the_whole(seed, cuts):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(30, 5)) + 3
    H[rng.random(30) < 0.2, 2] = np.nan
    valid = H[~np.isnan(H[:, 2])]
    found = of(H, cuts)
    assert (found.n, found.n_invalid) == (len(valid), 30 - len(valid))
    np.testing.assert_allclose(found.mean, valid.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.scatter, len(valid) * np.cov(valid.T, bias=True), rtol=1e-10, atol=1e-11)


def test_merging_is_associative_and_the_empty_one_changes_nothing(rng):
    a, b, c = (of(rng.normal(size=(n, 4))) for n in (1, 7, 20))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(Covariance.empty(4)), a)
    assert_same(Covariance.empty(4).merge(a), a)


def test_a_large_mean_costs_no_digits(rng):
    noise = rng.normal(size=(1000, 3))
    H = noise + 1e7
    spread = np.sum((noise - noise.mean(0)) ** 2, axis=0)
    np.testing.assert_allclose(np.diag(of(H, [10, 500]).scatter), spread, rtol=1e-8)  # E[x^2] - mu^2 keeps two digits
    assert abs(np.sum(H[:, 0] ** 2) - 1000 * H[:, 0].mean() ** 2 - spread[0]) > 1e-4 * spread[0]


def test_features_that_never_vary_have_no_scatter_at_all(rng):
    H = np.full((1000, 3), 0.1)
    H[:, 1] = rng.normal(size=1000)
    found = of(H, [3, 77, 400])
    assert found.scatter[0, 0] == found.scatter[2, 2] == found.scatter[0, 2] == 0.0
    assert np.count_nonzero(found.eigenvalues()) == 1


def test_spectra_equal_those_of_the_matrix(rng):
    H = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 5
    found = of(H, [50, 51])
    np.testing.assert_allclose(found.singular_values(), np.linalg.svd(H, compute_uv=False), rtol=1e-9)
    np.testing.assert_allclose(
        found.eigenvalues(), np.linalg.svd(H - H.mean(0), compute_uv=False) ** 2 / 200, rtol=1e-9
    )


def test_fewer_rows_than_features_give_as_many_values_as_rows(rng):
    H = rng.normal(size=(5, 40))
    found = of(H, [2])
    np.testing.assert_allclose(found.singular_values(), np.linalg.svd(H, compute_uv=False), rtol=1e-9)
    assert found.eigenvalues().shape == (5,) and np.count_nonzero(found.eigenvalues()) == 4


def test_rounding_is_no_direction(rng):
    H = np.outer(rng.normal(size=500), rng.normal(size=64))
    found = of(H, range(10, 500, 10))
    assert np.count_nonzero(found.singular_values()) == np.count_nonzero(found.eigenvalues()) == 1


def test_values_whose_squares_overflow_give_nan():
    H = np.array([[1e200, 0.0], [-1e200, 1.0], [1.0, 1.0]])
    assert np.isnan(of(H).singular_values()).all() and np.isnan(of(H, [1]).eigenvalues()).all()


def test_no_rows_have_no_spectrum():
    nothing = of(np.full((3, 4), np.nan))
    assert nothing.n_invalid == 3 and nothing.singular_values().shape == nothing.eigenvalues().shape == (0,)


def test_other_widths_are_refused(rng):
    found = of(rng.normal(size=(3, 4)))
    with pytest.raises(QScoreError, match=r"expected 4 features as in the rows before, got shape \(2, 5\)"):
        found.add(np.zeros((2, 5)))
    with pytest.raises(QScoreError, match="expected the same width, got 4, 5"):
        found.merge(Covariance.empty(5))
