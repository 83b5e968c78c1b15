import numpy as np
import pytest

from qscore import QScoreError
from qscore._validate import check_band, check_epsilon, check_keep, check_matrix, nearest, require


@pytest.mark.parametrize(
    ("H", "message"),
    [
        (np.zeros(4), r"expected a 2-D array of shape \(n, r\), got shape \(4,\)"),
        (np.zeros((2, 2, 2)), r"got shape \(2, 2, 2\)"),
        (np.zeros((0, 4)), r"at least one row, got shape \(0, 4\)"),
        (np.zeros((4, 1)), r"at least 2 features"),
        (np.zeros((2, 4), dtype=int), r"floating-point values, got int64; convert"),
        (np.full((2, 4), "a"), r"floating-point values, got <U1"),
        ([[1.0, 2.0]], r"got list"),
    ],
)
def test_matrix_errors_say_what_came(H, message):
    with pytest.raises(QScoreError, match=message):
        check_matrix(H)


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan"), float("inf"), True, "4"])
def test_epsilon_must_be_a_positive_number(epsilon):
    with pytest.raises(QScoreError, match="epsilon: expected a positive number"):
        check_epsilon(epsilon)


def test_epsilon_out_of_reach_names_the_bound_and_the_cure():
    with pytest.raises(QScoreError, match=r"17 features .* 4\.00 .* 'auto'"):
        check_epsilon(4.0, n_features=17)
    check_epsilon(4.0, n_features=18)


@pytest.mark.parametrize(("lower", "upper"), [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_band_must_be_ordered_and_inside_zero_one(lower, upper):
    with pytest.raises(QScoreError, match="0 <= lower < upper <= 1"):
        check_band(lower, upper)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), True, "0.6"])
def test_keep_must_be_a_share(keep):
    with pytest.raises(QScoreError, match=r"keep: expected a share of the features in \(0, 1\]"):
        check_keep(keep)
    check_keep(1)


def test_a_missing_extra_names_its_cure():
    with pytest.raises(QScoreError, match=r'pip install "qscore\[vision\]"'):
        require("a_package_nobody_has", "vision")
    assert require("math", "vision").pi > 3


def test_nearest_suggests_or_stays_silent():
    assert nearest("simclr2", ["simclr", "moco"]) == "; did you mean 'simclr'?"
    assert nearest("zzz", ["simclr", "moco"]) == ""
