import os

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from qscore import QScoreError
from qscore.evaluate.probes import fit_probe, logistic
from qscore.evaluate.probes.devices import Placement
from qscore.evaluate.probes.rows import TrainingRows, training_rows


def clouds(rng, n=300, r=12, classes=4, apart=1.0):
    """Rows of overlapping classes, on features of very different scale that correlate."""
    labels = rng.integers(0, classes, n)
    H = rng.normal(size=(n, r)) + apart * rng.normal(size=(classes, r))[labels]
    return (H @ rng.normal(size=(r, r)) + 5.0) * np.logspace(-2, 2, r), labels


def parts(H, labels):
    """z, the metric R + I and one-hot targets, in float64."""
    Z = (H - H.mean(0)) / np.where(H.std(0) > 0, H.std(0), 1.0)
    return Z, Z.T @ Z / len(Z) + np.eye(Z.shape[1]), np.equal.outer(labels, np.unique(labels)).astype(float)


def objective(W, b, Z, metric, Y, strength):
    S = Z @ W + b
    return strength * (logsumexp(S, axis=1) - (S * Y).sum(1)).sum() + np.trace(W.T @ metric @ W) / 2


def fitted(H, labels, **options):
    return logistic.fit_logistic(training_rows(H, labels), seed=0, placement=Placement(**options))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_gradient_of_the_documented_objective_is_zero(rng, classes):
    H, labels = clouds(rng, classes=classes)
    found = fitted(H, labels)
    W, b = found.classifier.weights.astype(float), found.classifier.bias.astype(float)
    Z, metric, Y = parts(H, labels)
    S = Z @ W + b
    residual = np.exp(S - logsumexp(S, axis=1, keepdims=True)) - Y
    gradient = found.strength * Z.T @ residual + metric @ W
    free = slice(1, None) if classes == 2 else slice(None)  # of two classes the first is the reference
    steepest = np.linalg.solve(np.linalg.cholesky(metric), gradient)[:, free] / (found.strength * len(H))
    assert found.converged
    assert np.abs(steepest).max() < 1e-6
    assert np.abs(residual.mean(0)).max() < 1e-6


def test_the_fit_is_the_optimum_that_scipy_finds(rng):
    H, labels = clouds(rng, n=60, r=4, classes=3)
    found = fitted(H, labels)
    Z, metric, Y = parts(H, labels)

    def loss(x):
        return objective(x[:12].reshape(4, 3), x[12:], Z, metric, Y, found.strength)

    optimum = minimize(loss, rng.normal(size=15), method="BFGS", options={"gtol": 1e-7})
    W, b = optimum.x[:12].reshape(4, 3), optimum.x[12:]
    np.testing.assert_allclose(found.classifier.weights, W, atol=1e-3)
    np.testing.assert_allclose(found.classifier.bias - found.classifier.bias.mean(), b - b.mean(), atol=1e-3)
    assert loss(np.append(found.classifier.weights.ravel(), found.classifier.bias)) <= optimum.fun * (1 + 1e-6)


def test_the_strength_is_the_one_that_gets_most_held_out_rows_right(rng):
    H, labels = clouds(rng, n=400, r=40, classes=5, apart=0.5)
    found = fitted(H, labels)
    fit_rows, held, _ = logistic.split_rows(labels, 0)
    Z, metric, _ = parts(H, labels)
    values, vectors = np.linalg.eigh(metric)
    X = Z @ vectors / np.sqrt(values)
    scores = []
    for strength in logistic.STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-6).fit(X[fit_rows], labels[fit_rows])
        chances = model.predict_proba(X[held])
        scores.append(((chances.argmax(1) == labels[held]).mean(), np.log(chances[range(80), labels[held]]).mean()))
    assert found.strength == logistic.STRENGTHS[max(range(len(scores)), key=scores.__getitem__)]
    assert len({accuracy for accuracy, _ in scores}) > 3


def test_the_search_ends_when_held_out_rows_are_predicted_worse(rng, monkeypatch):
    tried = []
    monkeypatch.setattr(
        logistic, "_fit", lambda model, X, codes, fit=logistic._fit: tried.append(model.C) or fit(model, X, codes)
    )
    H, labels = clouds(rng, apart=0.0)
    found = fitted(H, labels)
    assert len(tried) < len(logistic.STRENGTHS) + 1
    assert tried[:-1] == list(logistic.STRENGTHS[: len(tried) - 1]) and tried[-1] == found.strength


@pytest.mark.parametrize("classes", [2, 5])
def test_on_tensors_the_fit_is_the_same(rng, monkeypatch, classes):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    H, labels = clouds(rng, classes=classes)
    one, other = fitted(H, labels), fitted(H, labels, device=torch.device("cpu"))
    assert one.strength == other.strength and other.converged
    np.testing.assert_allclose(other.classifier.weights, one.classifier.weights, atol=2e-3)
    np.testing.assert_allclose(other.classifier.classify(H)[1], one.classifier.classify(H)[1], atol=1e-3)
    assert "SCIPY_ARRAY_API" not in os.environ and not sklearn.get_config()["array_api_dispatch"]


def test_features_may_have_any_scale(rng):
    H, labels = clouds(rng)
    scaled = H * 2.0 ** rng.integers(-20, 20, H.shape[1])
    one, other = fitted(H, labels), fitted(scaled, labels)
    np.testing.assert_array_equal(one.classifier.weights, other.classifier.weights)
    np.testing.assert_array_equal(one.classifier.classify(H)[0], other.classifier.classify(scaled)[0])


def test_a_large_offset_costs_no_digits(rng):
    H, labels = clouds(rng)
    one, other = fitted(H, labels), fitted(H + 1e6, labels)
    np.testing.assert_allclose(one.classifier.classify(H)[1], other.classifier.classify(H + 1e6)[1], atol=1e-4)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_constant_features_have_no_weight(rng, kind):
    H, labels = clouds(rng)
    H = (H - H.mean(0)) / H.std(0)
    wide = np.hstack([H, np.full((len(H), 2), [1 / 3, 1e4 / 7])]).astype(kind)
    found = fitted(wide, labels)
    assert (found.classifier.weights[-2:] == 0).all()
    narrow = fitted(wide[:, :-2], labels)
    np.testing.assert_allclose(
        found.classifier.classify(wide)[1], narrow.classifier.classify(wide[:, :-2])[1], atol=1e-4
    )


def test_a_fit_that_is_cut_short_says_so(rng, monkeypatch):
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 2)
    probe = fit_probe("logistic", *clouds(rng))
    assert probe.describe()["converged"] is False
    assert "The probe stopped before its optimum; its mistakes are not quite a linear probe's." in probe.sentences()


def test_a_penalty_at_the_end_of_the_range_is_told(rng, monkeypatch):
    monkeypatch.setattr(logistic, "STRENGTHS", (1e-9, 1e-8))
    monkeypatch.setattr("qscore.evaluate.probes.registry.STRENGTHS", (1e-9, 1e-8))
    H, labels = clouds(rng, apart=0.5)
    H[: len(H) // 2] = H[0]  # a shared row: the majority class until the weights matter
    probe = fit_probe("logistic", H, labels)
    edge = logistic.fit_logistic(training_rows(H, labels), seed=0, placement=Placement()).at_edge
    told = [said for said in probe.sentences() if said.startswith("Its penalty is the ")]
    assert len(told) == edge


def test_classes_with_a_single_row_are_learned_and_told(rng):
    H, labels = clouds(rng)
    labels[:2] = [90, 91]
    H[:2] += 1e4 * np.eye(H.shape[1])[:2]
    probe = fit_probe("logistic", H, labels)
    assert probe.describe()["n_single"] == 2
    assert "Of the classes, 2 with a single training row had no say in its penalty." in probe.sentences()
    assert set(probe.classes) == {0, 1, 2, 3, 90, 91}


def test_only_classes_with_a_single_row_are_refused(rng):
    with pytest.raises(QScoreError) as error:
        fit_probe("logistic", rng.normal(size=(5, 3)), list("abcde"))
    assert str(error.value) == (
        "the probe chooses its strength on held-out rows, but each of the 5 classes has a single row; "
        "label more rows, or use --probe knn"
    )


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_split_keeps_every_class_on_the_fitting_side(drawn, seed):
    codes = np.unique([*drawn, 0, 0], return_inverse=True)[1]
    fitted, held, n_single = logistic.split_rows(codes, seed)
    counts = np.bincount(codes)
    assert sorted([*fitted, *held]) == list(range(len(codes)))
    assert set(codes[fitted]) == set(codes)
    assert (counts[codes[held]] > 1).all() and n_single == (counts == 1).sum()
    assert len(held) >= max((counts > 1).sum(), int(0.2 * (counts[counts > 1].sum()) - 0.5))


def test_a_fit_too_large_is_refused_beforehand():
    n = 1_281_167
    H = np.broadcast_to(np.float32(0), (n, 2048))
    training = TrainingRows(H, np.arange(n), np.arange(1000), np.arange(n) % 1000)
    with pytest.raises(QScoreError) as error:
        logistic.fit_logistic(training, seed=0, placement=Placement())
    assert str(error.value) == (
        "logistic probe: 1,281,167 rows of 2,048 features in 1,000 classes take 19.8 GiB and about 3e+15 operations, "
        "more than the 16.0 GiB and 1e+15 it is allowed on cpu; use --probe sgd, which streams, or --probe knn"
    )


def test_a_long_fit_is_announced(rng, monkeypatch, caplog):
    monkeypatch.setattr(logistic, "NOTEWORTHY", 0)
    with caplog.at_level("INFO"):
        fitted(*clouds(rng, n=50))
    assert "logistic probe: 50 rows of 12 features in 4 classes take 0.0 GiB and about 3e+06 operations" in caplog.text
