import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from reference import regularizer as reference

from qscore import LassoRegularizer, QScorer, QScoreRegularizer, core


def relu_rows(seed, b=7, r=24, strong=3):
    """Faint noise with exact zeros, and in each row a few strong features."""
    rng = np.random.default_rng(seed)
    rows = rng.gamma(0.4, 0.2, size=(b, r)) * (rng.random((b, r)) < 0.6)
    for row in rows:
        row[rng.choice(r, size=rng.integers(0, strong + 1), replace=False)] += rng.uniform(1, 4)
    return rows


def some_features(seed, r=24):
    rng = np.random.default_rng(seed + 1000)
    return sorted(rng.choice(r, size=r // 2, replace=False).tolist())


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


# A row of 24 may reach a z-score of 4.8; at 2.0 most rows have active features.
batches = st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([2.0, 3.0, 4.0])


@pytest.mark.filterwarnings("ignore:no row of the batch has a highly active feature")
@given(*batches, st.sampled_from(["sum", "mean"]))
@settings(max_examples=60, deadline=None)
def test_loss_and_gradient_are_those_worked_out_by_hand(seed, b, epsilon, reduction):
    rows, features = relu_rows(seed, b), some_features(seed)
    h = tensor(rows)
    loss = QScoreRegularizer(features, 0.3, 0.7, epsilon=epsilon, reduction=reduction)(h)
    loss.backward()
    arguments = rows.tolist(), features, epsilon, 0.3, 0.7, reduction
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(reference.loss(*arguments), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(h.grad, reference.gradient(*arguments), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:no row of the batch has a highly active feature")
@given(*batches)
@settings(max_examples=40, deadline=None)
def test_stats_are_those_worked_out_by_hand(seed, b, epsilon):
    rows, features = relu_rows(seed, b), some_features(seed)
    regularizer = QScoreRegularizer(features, 0.3, 0.7, epsilon=epsilon)
    loss = regularizer(tensor(rows))
    expected = reference.stats(rows.tolist(), features, epsilon)
    first, second = reference.terms(rows.tolist(), features, epsilon)
    expected |= {"first": -0.3 * first, "second": 0.7 * second}
    assert set(regularizer.stats) == set(expected)
    for name, value in regularizer.stats.items():
        assert value.ndim == 0 and not value.requires_grad
        assert float(value) == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True), name
    assert float(regularizer.stats["first"] + regularizer.stats["second"]) == pytest.approx(loss.item())


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_agree_with_finite_differences(seed):
    rows = relu_rows(seed, b=4) + 0.01  # away from |h| = 0, where the norm has a kink
    regularizer = QScoreRegularizer(some_features(seed), 0.3, 0.7, epsilon=2.0)
    # Sets and indicators are constant around a point, so that what does not flow through them changes nothing.
    assert torch.autograd.gradcheck(regularizer, (tensor(rows),), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("power", [-20, 20])
def test_scaling_by_a_power_of_two_scales_the_loss_and_keeps_the_gradient(power):
    rows, regularizer = relu_rows(3), QScoreRegularizer(some_features(3), 0.3, 0.7, epsilon=2.0)
    plain, scaled = tensor(rows), tensor(rows * 2.0**power)
    one, other = regularizer(plain), regularizer(scaled)
    one.backward(), other.backward()
    assert other == one * 2.0**power
    assert torch.equal(plain.grad, scaled.grad)


def test_the_order_of_rows_does_not_matter():
    rows, regularizer = relu_rows(4, b=9), QScoreRegularizer(some_features(4), 0.3, 0.7, epsilon=2.0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    plain, moved = tensor(rows), tensor(rows[order])
    one, other = regularizer(plain), regularizer(moved)
    one.backward(), other.backward()
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(plain.grad[order], moved.grad)


def test_only_rows_below_alpha_and_columns_above_beta_have_a_gradient():
    h = torch.zeros(4, 20, dtype=torch.float64)
    h[0, 3], h[1, 3], h[2, 4], h[3, 9] = 20.0, 40.0, 10.0, 30.0  # D is {3, 4}: row 3 has no Q
    h.requires_grad_()
    QScoreRegularizer([3, 4], 1.0, 0.0)(h).backward()  # Q is 19, 38, 9.5, 0; alpha is 22.2
    assert (h.grad != 0).any(1).tolist() == [True, False, True, False]
    assert (h.grad[0, 3], h.grad[0, 5]) == (-(1 - 1 / 20), 1 / 20)
    h.grad = None
    QScoreRegularizer([3, 4], 0.0, 1.0)(h).backward()  # norms are 60, 10, 30; beta is 5
    assert [tuple(index) for index in h.grad.nonzero().tolist()] == [(0, 3), (1, 3), (2, 4), (3, 9)]


def test_a_step_along_the_gradient_lifts_bad_rows_and_no_other(relu_table):
    h = torch.tensor(relu_table[:64], dtype=torch.float64, requires_grad=True)
    D = torch.arange(0, 30)
    regularizer = QScoreRegularizer(D, 1.0, 0.0, epsilon=3.0)
    regularizer(h).backward()
    before = core.q_score(h.detach(), D, 3.0)
    after = core.q_score(h.detach() - 1e-3 * h.grad, D, 3.0)
    lifted = (before > 0) & (before < regularizer.stats["alpha"])
    assert 5 < lifted.sum() < 60
    assert (after[lifted] > before[lifted]).all()
    assert torch.equal(after[~lifted], before[~lifted])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened_and_does_not_overflow(dtype):
    rows = torch.tensor(relu_rows(5, b=64) * 1e4).to(dtype)  # the columns' norms exceed what float16 can hold
    h = rows.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = QScoreRegularizer(some_features(5), 0.3, 0.7, epsilon=2.0)(h)
    loss.backward()
    wide = rows.double().requires_grad_()
    expected = QScoreRegularizer(some_features(5), 0.3, 0.7, epsilon=2.0)(wide)
    expected.backward()
    assert loss.dtype == torch.float32 and h.grad.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(h.grad, wide.grad.to(dtype))


def test_calibration_gives_each_term_its_share_of_the_gradient():
    h = tensor(relu_rows(6, b=32))
    target = torch.randn(32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ssl_loss = ((h - target) ** 2).mean()
    regularizer = QScoreRegularizer(some_features(6), reduction="mean", epsilon=2.0)
    weights = regularizer.calibrate(ssl_loss, h)
    assert weights == (regularizer.lambda1, regularizer.lambda2)
    ssl_norm = float(torch.autograd.grad(ssl_loss, h, retain_graph=True)[0].norm())
    for lambdas in ((weights[0], 0.0), (0.0, weights[1])):
        loss = QScoreRegularizer(some_features(6), *lambdas, reduction="mean", epsilon=2.0)(h)
        assert float(torch.autograd.grad(loss, h)[0].norm()) == pytest.approx(0.1 * ssl_norm)
    found = regularizer.gradient_ratios(ssl_loss, h)
    assert found == pytest.approx({"gradient_ratio_1": 0.1, "gradient_ratio_2": 0.1})
    regularizer.calibrate(ssl_loss, h, share=0.5)
    assert regularizer.gradient_ratios(ssl_loss, h)["gradient_ratio_2"] == pytest.approx(0.5)
    regularizer(h)
    assert {name: float(regularizer.stats[name]) for name in found} == pytest.approx(dict.fromkeys(found, 0.5))
    assert h.grad is None
    (ssl_loss + regularizer(h)).backward()  # the graph is still there


def test_the_mean_with_the_papers_weights_is_called_what_it_is():
    regularizer = QScoreRegularizer([3], reduction="mean")
    h = torch.zeros(2, 20).index_fill(1, torch.tensor([3]), 1.0)
    with pytest.warns(UserWarning, match="^reduction='mean' with the paper's weights, which are meant for sums, does"):
        regularizer(h)
    regularizer(h)  # once
    QScoreRegularizer([3], 1e-2, 1e-4, reduction="mean")(h)


def test_rows_without_active_features_give_no_first_term_and_one_warning():
    h = tensor(np.ones((4, 24)))
    regularizer = QScoreRegularizer([1, 2], 0.3, 0.7)
    with pytest.warns(UserWarning) as caught:
        loss = regularizer(h)
    regularizer(h)
    assert [warning.filename for warning in caught] == [__file__]
    assert [str(warning.message) for warning in caught] == [
        "no row of the batch has a highly active feature of D at epsilon 4, so the first term is 0 and lifts nothing; "
        "find D at a smaller epsilon: set_features(QScorer(epsilon='auto').fit(H))"
    ]
    assert loss.item() == 0.0 == float(regularizer.stats["first"])
    assert float(regularizer.stats["empty_rows"]) == 1.0 and math.isnan(regularizer.stats["alpha"])
    loss.backward()
    assert not h.grad.any()


def test_a_single_row_is_neither_lifted_nor_an_error():
    h = tensor([[0.0] * 19 + [5.0]])
    regularizer = QScoreRegularizer([19], 1.0, 0.0)
    assert regularizer(h).item() == 0.0 and float(regularizer.stats["below_alpha"]) == 0.0


@given(st.integers(0, 10_000), st.sampled_from(["sum", "mean"]))
@settings(max_examples=30, deadline=None)
def test_lasso_is_the_sum_of_magnitudes(seed, reduction):
    rows = relu_rows(seed) - 0.1  # features of either sign
    h = tensor(rows)
    lasso = LassoRegularizer(0.3, reduction=reduction)
    loss = lasso(h)
    loss.backward()
    divisor = 1 if reduction == "sum" else rows.size
    assert loss.item() == pytest.approx(0.3 * math.fsum(abs(x) for row in rows.tolist() for x in row) / divisor)
    np.testing.assert_allclose(h.grad, 0.3 * np.sign(rows) / divisor)
    assert set(lasso.stats) == {"hoyer", "zeros"}


def test_lasso_is_calibrated_alike():
    h = tensor(relu_rows(8))
    ssl_loss, lasso = (h**2).sum(), LassoRegularizer(reduction="mean")
    assert lasso.calibrate(ssl_loss, h, share=0.2) == lasso.lambda_
    assert lasso.gradient_ratios(ssl_loss, h) == {"gradient_ratio": pytest.approx(0.2)}
    other = LassoRegularizer(reduction="mean")
    other.load_state_dict(lasso.state_dict())
    assert other.lambda_ == lasso.lambda_


def test_what_a_scorer_found_is_used_with_its_epsilon(relu_table):
    scorer = QScorer(epsilon="auto").fit(relu_table)
    regularizer = QScoreRegularizer(scorer)
    assert regularizer.features.tolist() == scorer.discriminative_features_.tolist()
    assert (regularizer.epsilon, regularizer.n_features) == (scorer.epsilon_, 64)
    regularizer(torch.tensor(relu_table))
    expected = scorer.score_samples(relu_table).mean()
    assert float(regularizer.stats["q"]) == pytest.approx(expected)
    assert float(regularizer.stats["coverage"]) >= 0.95
    assert QScoreRegularizer(scorer, epsilon=3.5).epsilon == 3.5


def test_a_state_keeps_another_d_its_epsilon_and_calibrated_weights(relu_table):
    h = torch.tensor(relu_table, requires_grad=True)
    regularizer = QScoreRegularizer(range(5))
    assert regularizer.features.tolist() == [0, 1, 2, 3, 4]
    scorer = QScorer(epsilon="auto").fit(relu_table)
    regularizer.set_features(scorer)
    regularizer.calibrate((h**2).sum(), h)
    resumed = torch.nn.ModuleDict({"quality": QScoreRegularizer([1])})
    resumed.load_state_dict(torch.nn.ModuleDict({"quality": regularizer}).state_dict())
    assert torch.equal(resumed["quality"](h), regularizer(h))
    assert repr(resumed["quality"]) == repr(regularizer)
    given = QScoreRegularizer([1], 0.5, 0.25)
    given.load_state_dict(QScoreRegularizer([2]).state_dict())
    assert (given.lambda1, given.lambda2, given.features.tolist()) == (0.5, 0.25, [2])
