"""Every refusal is one line that says what was expected, what came, and what to do."""

import numpy as np
import pytest
import torch

import qscore
from qscore import LassoRegularizer, QScoreError, QScorer, QScoreRegularizer
from qscore.tables import write_features

SIGNED = (
    "the paper's form needs features that are never negative: L_i looks above a row's mean only, where a signed "
    "encoder's strong negative features are not seen"
)


@pytest.fixture
def h():
    return torch.tensor(np.random.default_rng(0).gamma(0.3, size=(6, 20)), requires_grad=True)


def refusal(action, *arguments, **options):
    with pytest.raises(QScoreError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ([], "features: D is empty, so no row can be lifted; find it at a smaller epsilon: QScorer(epsilon='auto')"),
        (np.zeros(20, dtype=bool), "features: D is empty, so no row can be lifted; find it at a smaller epsilon: "),
        ([-1, 2], "features: expected indices of at least 0, got -1"),
        (
            np.array([0.5]),
            "features: expected indices, a mask of booleans, a fitted QScorer or the path of a feature table; got "
            "float64 of shape (1,)",
        ),
        (
            [[1, 2]],
            "features: expected indices, a mask of booleans, a fitted QScorer or the path of a feature table; got "
            "int64 of shape (1, 2)",
        ),
        (
            {"a": 1},
            "features: expected indices, a mask of booleans, a fitted QScorer or the path of a feature table; got dict",
        ),
        (QScorer(), "features: the scorer is not fitted; call its fit(H) first"),
        ("nowhere.parquet", "nowhere.parquet: no such file"),
    ],
)
def test_features_that_are_no_features(features, text):
    assert refusal(QScoreRegularizer, features).startswith(text)


def test_features_out_of_range_or_of_another_width(h, relu_table):
    assert refusal(QScoreRegularizer([3, 25]), h) == "features: expected indices from 0 to 19, got 3 to 25"
    wider = "h: has 20 features, but D was found among 64; find D with this encoder"
    assert refusal(QScoreRegularizer(torch.ones(64, dtype=torch.bool), epsilon=2.0), h) == wider
    assert refusal(QScoreRegularizer(QScorer(epsilon=2.0).fit(relu_table)), h) == wider
    regularizer = QScoreRegularizer([3], epsilon=2.0)
    regularizer(torch.ones(2, 64).index_fill(1, torch.tensor([3]), 9.0))
    assert refusal(regularizer, h) == wider


def test_a_feature_table_by_path_and_one_of_a_signed_encoder(tmp_path, relu_table, rng):
    np.save(tmp_path / "e.npy", relu_table)
    qscore.score(tmp_path / "e.npy", tmp_path / "scores.parquet", epsilon="auto")
    regularizer = QScoreRegularizer(tmp_path / "scores.features.parquet")
    scorer = QScorer(epsilon="auto").fit(relu_table)
    assert regularizer.features.tolist() == scorer.discriminative_features_.tolist()
    assert (regularizer.epsilon, regularizer.n_features) == (scorer.epsilon_, 64)
    assert refusal(QScoreRegularizer, str(tmp_path / "scores.parquet")) == (
        f"{tmp_path}/scores.parquet: expected a table of features, as qscore score writes it"
    )
    broken = tmp_path / "broken.parquet"
    write_features(broken, np.arange(4), np.array([2]), {"n": 9, "signed": False})
    assert refusal(QScoreRegularizer, broken) == (
        f"{broken}: a damaged feature table ('epsilon'); run qscore score again"
    )
    signed = rng.normal(size=(200, 64)).astype(np.float32)
    np.save(tmp_path / "s.npy", signed)
    qscore.score(tmp_path / "s.npy", tmp_path / "s.parquet", epsilon=2.0)
    path = tmp_path / "s.features.parquet"
    assert refusal(QScoreRegularizer, path) == f"{path}: D of a signed encoder, but {SIGNED}"
    assert refusal(QScoreRegularizer, QScorer(epsilon=2.0).fit(signed)) == (
        f"features: D of a signed encoder, but {SIGNED}"
    )


def test_negative_values_and_values_that_are_not_finite(h):
    negative, broken = h.detach().clone(), h.detach().clone()
    negative[1, 4] = negative[2, 5] = -1e-3
    broken[3, 0], broken[4, 0] = float("nan"), float("inf")
    regularizer = QScoreRegularizer([3], epsilon=2.0)
    assert refusal(regularizer, negative) == (
        f"h: 2 of 120 values are negative, but {SIGNED}; take the features after a ReLU"
    )
    diverged = (
        "h: 2 of 6 rows hold NaN or infinity: the training has diverged; go back to an earlier checkpoint, and lower "
        "the learning rate"
    )
    assert refusal(regularizer, broken) == diverged
    assert refusal(LassoRegularizer(), broken) == diverged


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf"), "1", True])
def test_weights_that_are_no_weights(value):
    assert refusal(QScoreRegularizer, [1], value) == f"lambda1: expected a number of at least 0, got {value!r}"
    assert refusal(QScoreRegularizer, [1], 0, value) == f"lambda2: expected a number of at least 0, got {value!r}"
    assert refusal(LassoRegularizer, value) == f"lambda_: expected a number of at least 0, got {value!r}"


def test_settings_out_of_range():
    assert refusal(QScoreRegularizer, [1], reduction="max") == "reduction: expected 'sum' or 'mean', got 'max'"
    assert refusal(LassoRegularizer, reduction=None) == "reduction: expected 'sum' or 'mean', got None"
    assert refusal(QScoreRegularizer, [1], epsilon=0) == "epsilon: expected a positive number, got 0"
    narrow = (
        "epsilon: with 17 features no value lies more than 4.00 standard deviations above its row's mean, so "
        "epsilon = 4 leaves every row empty; use epsilon below 4.00 or 'auto'"
    )
    assert refusal(QScoreRegularizer, torch.ones(17, dtype=torch.bool)) == narrow
    assert refusal(QScoreRegularizer([1]), torch.ones(3, 17)) == narrow


def test_representations_of_another_kind():
    regularizer = QScoreRegularizer([1])
    assert refusal(regularizer, torch.ones(4, 20, 1, 1)) == (
        "h: expected a 2-D array of shape (n, r), got shape (4, 20, 1, 1)"
    )
    assert refusal(regularizer, torch.ones(0, 20)) == "h: expected at least one row, got shape (0, 20)"
    assert refusal(regularizer, torch.ones(2, 20).long()) == (
        "h: expected floating-point values, got torch.int64; convert it to float32 first"
    )
    assert refusal(LassoRegularizer(), np.ones((2, 20))) == "h: expected a PyTorch tensor, got ndarray"


def test_calibration_without_gradients(h):
    regularizer = QScoreRegularizer([3, 4, 5], epsilon=2.0)
    ssl_loss = (h**2).sum()
    assert refusal(regularizer.calibrate, ssl_loss, h.detach()) == (
        "h: carries no gradient; pass the encoder's output as it came, not detached"
    )
    unrelated = "ssl_loss: does not depend on h; pass the very tensor that the loss was computed from"
    assert refusal(regularizer.calibrate, torch.ones((), requires_grad=True), h) == unrelated
    assert refusal(regularizer.gradient_ratios, 1.0, h) == unrelated
    assert refusal(regularizer.calibrate, ssl_loss, h, share=0) == "share: expected a positive number, got 0"
    assert refusal(regularizer.calibrate, (h * 0).sum(), h) == (
        "calibrate: the norm of ssl_loss's gradient on h is 0; take another batch"
    )
    even = torch.ones(3, 20, requires_grad=True)
    assert refusal(regularizer.calibrate, (even**2).sum(), even) == (
        "calibrate: the norm of the first term's gradient on h is 0; take another batch, or find D at a smaller epsilon"
    )
    ssl_loss.backward()
    assert refusal(regularizer.gradient_ratios, ssl_loss, h).endswith("; call this before backward()")
