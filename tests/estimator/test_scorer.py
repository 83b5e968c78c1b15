import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from qscore import QScoreError, QScorer, core


@pytest.mark.filterwarnings("ignore:epsilon. with .* features no value lies more")
@pytest.mark.filterwarnings("ignore:.* of the rows have no highly active discriminative feature")
@pytest.mark.filterwarnings("ignore:partial_fit. negative values are scored one-sided")
@pytest.mark.filterwarnings("ignore:no epsilon from 4.0 to 1.5")
@parametrize_with_checks([QScorer(), QScorer(epsilon=2.0, signed=False)])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_fit_and_score_are_the_paper(relu_table):
    scorer = QScorer(epsilon=3.0).fit(relu_table)
    rates = core.activation_rates(relu_table, 3.0)
    D = core.discriminative_features(rates)
    np.testing.assert_array_equal(scorer.activation_rates_, rates)
    np.testing.assert_array_equal(scorer.discriminative_features_, D)
    expected = core.q_score(relu_table, D, 3.0)
    np.testing.assert_allclose(scorer.score_samples(relu_table), expected, rtol=1e-12)
    np.testing.assert_array_equal(QScorer(epsilon=3.0).fit_score(relu_table), scorer.score_samples(relu_table))


def test_automatic_epsilon_is_the_papers_grid(relu_table):
    assert QScorer(epsilon="auto").fit(relu_table).epsilon_ == core.automatic_epsilon(relu_table)


@pytest.mark.parametrize("cuts", [[100], [1, 2, 199], [60, 120, 180]])
@pytest.mark.parametrize("signed", [False, "auto"])
def test_partial_fit_equals_fit_exactly(relu_table, cuts, signed):
    whole = QScorer(epsilon=3.0, signed=signed).fit(relu_table)
    parts = QScorer(epsilon=3.0, signed=signed)
    for part in np.split(relu_table, cuts):
        parts.partial_fit(part)
    for name in ("counts_", "activation_rates_", "discriminative_features_"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.n_samples_seen_ == whole.n_samples_seen_ == len(relu_table)
    np.testing.assert_array_equal(parts.score_samples(relu_table), whole.score_samples(relu_table))


@pytest.mark.filterwarnings("ignore:.* of the rows have no highly active discriminative feature")
def test_partial_fit_on_negative_values_warns_and_stays_one_sided(rng):
    H = rng.normal(size=(200, 40))
    with pytest.warns(UserWarning, match="scored one-sided"):
        scorer = QScorer(epsilon=2.0).partial_fit(H)
    np.testing.assert_array_equal(scorer.counts_, QScorer(epsilon=2.0, signed=False).fit(H).counts_)


def test_signed_tables_are_scaled_and_thresholded_on_both_sides(rng):
    H = rng.normal(size=(300, 40)) * 10.0 ** rng.integers(-2, 3, size=40) + rng.normal(size=40)
    scorer = QScorer(epsilon=2.0).fit(H)
    assert scorer.signed_
    scaled = core.apply_scaling(H, *core.robust_scaling(H))
    D = core.discriminative_features(core.activation_rates(scaled, 2.0, two_sided=True))
    np.testing.assert_array_equal(scorer.discriminative_features_, D)
    expected = core.q_score(scaled, D, 2.0, two_sided=True)
    np.testing.assert_allclose(scorer.score_samples(H), expected, rtol=1e-12)


def test_scores_follow_the_fit_not_the_scored_rows(relu_table, rng):
    scorer = QScorer(epsilon=3.0).fit(relu_table)
    some = scorer.score_samples(relu_table[:7])
    np.testing.assert_array_equal(some, scorer.score_samples(relu_table)[:7])


def test_clone_pickle_and_torch(relu_table):
    import torch

    scorer = QScorer(epsilon=3.0).fit(relu_table)
    expected = scorer.score_samples(relu_table)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scorer)).score_samples(relu_table), expected)
    np.testing.assert_array_equal(clone(scorer).fit(torch.as_tensor(relu_table)).score_samples(relu_table), expected)


def test_out_of_reach_epsilon_warns_and_scores_zero(rng):
    H = rng.random((50, 10))
    with pytest.warns(UserWarning, match=r"10 features .* 3\.00 .* all scores are 0"):
        scorer = QScorer(epsilon="paper").fit(H)
    assert not scorer.score_samples(H).any()


def test_mostly_empty_rows_are_warned_of_with_the_cure(rng):
    H = rng.random((50, 40))
    with pytest.warns(UserWarning, match=r"100% of the rows .* epsilon='auto'"):
        QScorer(epsilon="paper").fit(H)
    with pytest.warns(UserWarning, match="no epsilon from 4.0 to 1.5"):
        QScorer().fit(H)


def test_the_paper_s_epsilon_is_a_preset_and_the_default_is_automatic(relu_table):
    paper = QScorer(epsilon="paper").fit(relu_table)
    assert paper.epsilon == "paper" and paper.epsilon_ == 4.0
    np.testing.assert_array_equal(paper.counts_, QScorer(epsilon=4.0).fit(relu_table).counts_)
    np.testing.assert_array_equal(paper.counts_, QScorer(epsilon="paper").partial_fit(relu_table).counts_)
    assert QScorer().epsilon == "auto"


def test_no_warning_where_rows_are_covered(relu_table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QScorer(epsilon=2.0).fit(relu_table)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (QScorer(epsilon=-1), "epsilon: expected a positive number"),
        (QScorer(lower=0.9, upper=0.5), "0 <= lower < upper <= 1"),
        (QScorer(signed="yes"), "signed: expected True, False or 'auto'"),
        (QScorer(epsilon=np.array([1.0, 2.0])), "epsilon: expected a positive number, got array"),
        (QScorer(epsilon="Paper"), "epsilon: expected a positive number, 'auto' or 'paper', got 'Paper'"),
    ],
)
def test_bad_parameters_are_refused(relu_table, scorer, message):
    with pytest.raises(QScoreError, match=message):
        scorer.fit(relu_table)


def test_partial_fit_refuses_what_needs_all_rows(relu_table):
    with pytest.raises(QScoreError, match="signed=True needs all rows at once; use fit"):
        QScorer(epsilon=3.0, signed=True).partial_fit(relu_table)
    assert hasattr(QScorer(epsilon=3.0), "partial_fit") and not hasattr(QScorer(), "partial_fit")
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as error:
        _ = QScorer().partial_fit
    assert str(error.value.__cause__) == (
        "partial_fit: epsilon='auto' needs all rows at once; use fit, or epsilon='paper'"
    )


def test_bad_tables_are_refused(relu_table):
    with pytest.raises(ValueError, match="contains NaN"):
        QScorer().fit(np.where(relu_table > 1, np.nan, relu_table))
    with pytest.raises(ValueError, match="expecting 64 features"):
        QScorer(epsilon=3.0).fit(relu_table).score_samples(relu_table[:, :10])
    with pytest.raises(NotFittedError):
        QScorer().score_samples(relu_table)


@pytest.mark.filterwarnings("ignore:.* of the rows have no highly active discriminative feature")
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_a_scorer_rebuilt_from_counts_scores_alike_and_goes_on(relu_table, shift):
    H = relu_table - np.float32(shift)
    fitted = QScorer(epsilon=3.0).fit(H)
    scaling = (fitted.center_, fitted.scale_) if fitted.signed_ else None
    assert fitted.signed_ == (shift > 0)
    scorer = QScorer.from_counts(fitted.counts_, len(H), epsilon=3.0, scaling=scaling)
    np.testing.assert_array_equal(scorer.score_samples(H), fitted.score_samples(H))
    np.testing.assert_array_equal(scorer.activation_rates_, fitted.activation_rates_)
    if not shift:
        scorer.partial_fit(H[:50])
        whole = QScorer(epsilon=3.0).fit(np.concatenate([H, H[:50]]))
        np.testing.assert_array_equal(scorer.counts_, whole.counts_)
        assert scorer.n_samples_seen_ == whole.n_samples_seen_


def test_counts_with_bad_parameters_are_refused():
    for wrong in ({"epsilon": "auto"}, {"epsilon": -1.0}, {"epsilon": 4.0, "lower": 0.9, "upper": 0.5}):
        with pytest.raises(QScoreError, match="expected"):
            QScorer.from_counts(np.arange(30), 60, **wrong)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_one_row_scores_as_in_its_table(relu_table, dtype, shift):
    H = (relu_table - shift).astype(dtype)
    scorer = QScorer(epsilon=2.0).fit(H)
    assert scorer.signed_ == (shift > 0)
    expected = scorer.score_samples(H)
    assert [scorer.score_one(row) for row in H] == expected.tolist()
    assert scorer.score_one(np.asfortranarray(H)[7]) == expected[7]
    assert expected.any()


def test_one_row_follows_the_fit_and_travels(relu_table):
    scorer = QScorer(epsilon=2.0).fit(relu_table)
    first = scorer.score_one(relu_table[0])
    assert pickle.loads(pickle.dumps(scorer)).score_one(relu_table[0]) == first
    scorer.fit(relu_table[:100])
    assert scorer.score_one(relu_table[0]) == scorer.score_samples(relu_table[:1])[0]
    scorer.partial_fit(relu_table[100:])
    assert scorer.score_one(relu_table[0]) == first


def test_one_row_that_cannot_be_scored(relu_table):
    with pytest.raises(NotFittedError):
        QScorer().score_one(relu_table[0])
    scorer = QScorer(epsilon=2.0).fit(relu_table)
    for x in (relu_table[:1], relu_table[0, :10], relu_table[0].astype(str), relu_table[0].tolist()):
        with pytest.raises(QScoreError, match=r"x: expected an array of numbers of shape \(64,\)"):
            scorer.score_one(x)
    for value in (np.nan, np.inf):
        x = relu_table[0].copy()
        x[3] = value
        assert np.isnan(scorer.score_one(x))
