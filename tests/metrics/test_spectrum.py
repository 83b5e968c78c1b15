import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import metrics as reference

from qscore import QScoreError
from qscore.metrics import Covariance, alpha_req, nesum, rankme, stable_rank

spectra = arrays(np.float64, st.integers(2, 30), elements=st.floats(0.01, 1e3))
METRICS = (rankme, stable_rank, nesum, alpha_req)


def test_all_equal_the_definitions_on_the_matrix(rng):
    for shape in ((300, 20), (40, 120)):
        H = rng.gamma(0.5, size=shape) @ rng.normal(size=(shape[1], shape[1]))
        found = Covariance.empty(shape[1]).add(H[:30]).add(H[30:])
        singular_values, eigenvalues = found.singular_values(), found.eigenvalues()
        assert rankme(singular_values) == pytest.approx(reference.rankme(H), rel=1e-9)
        assert stable_rank(singular_values) == pytest.approx(reference.stable_rank(H), rel=1e-9)
        assert nesum(eigenvalues) == pytest.approx(reference.nesum(H), rel=1e-9)
        assert alpha_req(eigenvalues) == pytest.approx(reference.alpha_req(H), rel=1e-7)


@pytest.mark.parametrize("k", [2, 16, 512])
def test_a_flat_spectrum_fills_every_direction(k):
    flat = np.full(k, 3.0)
    assert rankme(flat) == pytest.approx(k, rel=1e-3) and stable_rank(flat) == nesum(flat) == k
    assert math.isnan(alpha_req(flat)) if k < 5 else alpha_req(flat) == pytest.approx(0, abs=1e-12)


def test_rank_one():
    one = np.array([5.0, 0.0, 0.0, 0.0])
    assert rankme(one) == pytest.approx(1, abs=1e-5) and stable_rank(one) == nesum(one) == 1.0
    assert math.isnan(alpha_req(one))


def test_rankme_holds_the_papers_epsilon():
    """Half the directions empty: each adds -1e-7 log 1e-7 to the entropy."""
    k = 1000
    p = 1 / k + 1e-7
    entropy = -k * p * math.log(p) - k * 1e-7 * math.log(1e-7)
    assert rankme(np.repeat([2.0, 0.0], k)) == pytest.approx(math.exp(entropy), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("k", [6, 50, 1000])
def test_power_laws_have_their_exponent(alpha, k):
    assert alpha_req(7.0 * np.arange(1.0, k + 1) ** -alpha) == pytest.approx(alpha, abs=1e-10)


def test_alpha_reads_the_ranks_4_to_100_alone():
    law = np.arange(1.0, 301.0) ** -1.0
    changed = law.copy()
    changed[:3] = 1e6
    changed[100:] *= 1e-3
    assert alpha_req(changed) == pytest.approx(1.0, abs=1e-12)
    changed[99] *= 0.5
    assert alpha_req(changed) > 1.001
    assert alpha_req(np.arange(1.0, 31.0) ** -1.0, first=1, last=2) == pytest.approx(1.0)


def test_power_laws_of_known_sums():
    k = np.arange(1.0, 65.0)
    assert nesum(1 / k) == pytest.approx(math.fsum(1 / k))  # a harmonic number
    assert stable_rank(1 / k) == pytest.approx(math.fsum(1 / k**2))


@given(spectra, st.floats(1e-3, 1e3))
def test_scale_changes_nothing(values, scale):
    for metric in METRICS:
        assert metric(values * scale) == pytest.approx(metric(values), rel=1e-9, abs=1e-9, nan_ok=True)


@given(spectra, st.randoms())
def test_order_changes_nothing(values, random):
    shuffled = values[random.sample(range(len(values)), len(values))]
    for metric in METRICS:
        assert metric(shuffled) == pytest.approx(metric(values), rel=1e-9, abs=1e-9, nan_ok=True)


@given(spectra)
def test_ranks_lie_between_one_and_their_number(values):
    k = len(values)
    assert 1 <= stable_rank(values) <= k + 1e-9 and 1 <= nesum(values) <= k + 1e-9
    assert 1 - 1e-6 <= rankme(values) <= k * (1 + 1e-4)
    assert stable_rank(values) <= rankme(values) * (1 + 1e-9) + 1e-6  # entropies of rising order fall


@pytest.mark.parametrize("values", [np.empty(0), np.zeros(3), np.full(3, np.nan)])
@pytest.mark.parametrize("metric", METRICS)
def test_what_is_undefined_is_nan(metric, values):
    assert math.isnan(metric(values))


@pytest.mark.parametrize("metric", METRICS)
def test_negative_values_are_refused(metric):
    with pytest.raises(QScoreError, match="none below 0; the smallest is -1"):
        metric(np.array([2.0, -1.0]))


def test_ranks_that_are_no_range_are_refused():
    with pytest.raises(QScoreError, match="expected ranks 1 <= first < last, got 5 and 5"):
        alpha_req(np.ones(9), first=5, last=5)
