import pickle

import numpy as np
import pandas as pd
import pytest
from reference import compression, paper
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from qscore import DiscriminativeFeatureSelector, QScoreError, QScorer


@pytest.mark.filterwarnings("ignore:epsilon. with .* features no value lies more")
@pytest.mark.filterwarnings("ignore:.* of the rows have no highly active discriminative feature")
@pytest.mark.filterwarnings("ignore:partial_fit. negative values are scored one-sided")
@pytest.mark.filterwarnings("ignore:no epsilon from 4.0 to 1.5")
@parametrize_with_checks(
    [DiscriminativeFeatureSelector(), DiscriminativeFeatureSelector(keep=0.3, epsilon=2.0, signed=False)]
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("keep", [0.3, 0.45, 0.6, 0.97, 1.0])
def test_the_kept_features_are_the_papers(relu_table, keep):
    selector = DiscriminativeFeatureSelector(keep=keep, epsilon=3.0).fit(relu_table)
    expected = compression.kept_features(paper.activation_rates(relu_table.tolist(), 3.0), keep)
    assert selector.get_support(indices=True).tolist() == selector.kept_features_.tolist() == expected
    np.testing.assert_array_equal(selector.transform(relu_table), relu_table[:, expected])
    assert selector.transform(relu_table).dtype == np.float32


@pytest.mark.parametrize("cuts", [[100], [1, 2, 199]])
def test_partial_fit_equals_fit_exactly(relu_table, cuts):
    whole = DiscriminativeFeatureSelector(epsilon=3.0).fit(relu_table)
    parts = DiscriminativeFeatureSelector(epsilon=3.0)
    for part in np.split(relu_table, cuts):
        parts.partial_fit(part)
    np.testing.assert_array_equal(parts.kept_features_, whole.kept_features_)
    np.testing.assert_array_equal(parts.scorer_.counts_, whole.scorer_.counts_)


def test_partial_fit_refuses_what_the_scorer_refuses(relu_table):
    selector = DiscriminativeFeatureSelector(epsilon=3.0, signed=True)
    with pytest.raises(QScoreError, match="needs all rows at once; use fit"):
        selector.partial_fit(relu_table)
    assert not hasattr(selector, "scorer_") and not hasattr(DiscriminativeFeatureSelector(), "partial_fit")
    selector = DiscriminativeFeatureSelector(epsilon=3.0).fit(relu_table)
    with pytest.raises(QScoreError, match="cannot continue a fit with another epsilon"):
        selector.set_params(epsilon=2.0).partial_fit(relu_table)


def test_signed_and_automatic_ranks_are_the_scorers(rng):
    H = rng.normal(size=(300, 40)) + rng.normal(size=40)
    for row, k in zip(H, rng.integers(0, 10, 300), strict=True):
        row[[k, 10 + k, 20 + k]] += 8.0
    selector = DiscriminativeFeatureSelector(epsilon="auto").fit(H)
    scorer = QScorer(epsilon="auto").fit(H)
    assert scorer.signed_ and selector.scorer_.epsilon_ == scorer.epsilon_
    assert selector.kept_features_.tolist() == compression.kept_features(scorer.counts_.tolist(), 0.6)
    np.testing.assert_array_equal(selector.transform(H), H[:, selector.kept_features_])


def test_names_pass_through_and_pandas_comes_out(relu_table):
    frame = pd.DataFrame(relu_table, columns=[f"unit {j}" for j in range(64)])
    selector = DiscriminativeFeatureSelector(epsilon=3.0).set_output(transform="pandas").fit(frame)
    names = [f"unit {j}" for j in selector.kept_features_]
    assert selector.get_feature_names_out().tolist() == names
    pd.testing.assert_frame_equal(selector.transform(frame), frame[names])
    assert not hasattr(selector.fit(relu_table), "feature_names_in_")


def test_pipeline_clone_and_pickle(relu_table):
    labels = relu_table[:, :10].argmax(axis=1)
    pipeline = make_pipeline(DiscriminativeFeatureSelector(epsilon=3.0), LogisticRegression(max_iter=500))
    pipeline.fit(relu_table, labels)
    assert pipeline.score(relu_table, labels) > 0.8
    selector = pipeline[0]
    expected = selector.transform(relu_table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(selector)).transform(relu_table), expected)
    assert not hasattr(clone(selector), "scorer_")
    np.testing.assert_array_equal(clone(selector).fit_transform(relu_table), expected)


def test_bad_input_is_refused(relu_table):
    with pytest.raises(QScoreError, match="keep: expected a share of the features"):
        DiscriminativeFeatureSelector(keep=1.5).fit(relu_table)
    with pytest.raises(QScoreError, match="epsilon: expected a positive number"):
        DiscriminativeFeatureSelector(epsilon=-1).fit(relu_table)
    with pytest.raises(NotFittedError):
        DiscriminativeFeatureSelector().transform(relu_table)
    with pytest.raises(ValueError, match="expecting 64 features"):
        DiscriminativeFeatureSelector(epsilon=3.0).fit(relu_table).transform(relu_table[:, :10])
