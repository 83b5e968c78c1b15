from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from reference import paper
from reference import rivals as reference

import qscore
from qscore import QScoreError
from qscore.evaluate import failure_statistics
from qscore.evaluate.scores import SCORES, Evidence, compute_scores
from qscore.scoring import read_scored

NAMES = [score.name for score in SCORES]
BY_NAME = {score.name: score for score in SCORES}
CORRECT = np.array([True, True, False, True, False])
# Rows ranked 1, 2, 3 and 3, 5: of the 3 x 2 pairs of a correct row and a wrong one the correct row ranks higher in 5,
# all but the tied rows 3 (wrong) and 4 (correct), which count half: 5.5 / 6. Ranked the other way round it is 0.5 / 6.
RANKED = Fraction(11, 12)
REVERSED = 1 - RANKED
COIN = Fraction(1, 2)


def feature_table(counts, D):
    r = len(counts)
    return pa.table({"feature": np.arange(r), "count": counts, "discriminative": np.isin(np.arange(r), D)})


def evidence(H, D, epsilon=2.0, train=None, **more):
    """Evidence as `score` would leave it, by loops."""
    H = np.asarray(H, dtype=np.float64)
    active = [sorted(paper.highly_activating(row, epsilon)) for row in H.tolist()]
    moments = [paper.mean_and_std(row) for row in H.tolist()]
    rows = pa.table(
        {
            "q_score": pa.array([paper.q_score(row, D, epsilon) for row in H.tolist()], pa.float32()),
            "mean": pa.array([mean for mean, _ in moments], pa.float32()),
            "std": pa.array([std for _, std in moments], pa.float32()),
            "max": pa.array(H.max(axis=1), pa.float32()),
            "l1_norm": pa.array(np.abs(H).sum(axis=1), pa.float32()),
            "l2_norm": pa.array(np.sqrt((H**2).sum(axis=1)), pa.float32()),
            "active": pa.array(active, pa.list_(pa.int32())),
            "deviation": pa.array(
                [[row[j] - mean for j in L] for row, L, (mean, _) in zip(H.tolist(), active, moments, strict=True)],
                pa.list_(pa.float32()),
            ),
        }
    )
    counts = np.bincount([j for L in active for j in L], minlength=H.shape[1])
    return Evidence(rows, H, np.eye(H.shape[1]) if train is None else np.asarray(train), **more), counts


def aurocs(found):
    values, _ = compute_scores(found)
    return {
        name: [failure_statistics(column, CORRECT)["auroc"] for column in np.atleast_2d(value.T)]
        for name, value in values.items()
    }


def check(found, expected):
    measured = aurocs(found)
    for name, fraction in expected.items():
        assert measured[name] == pytest.approx([float(fraction)] * len(measured[name]), abs=1e-12), name


def peaks(inside, outside, r=64):
    """Rows with one peak in D = {7}, one beside it at feature 9, and nothing else."""
    H = np.zeros((len(inside), r))
    H[:, 7], H[:, 9] = inside, outside
    return H


def plateaus(sizes, r=64):
    """Rows of k ones among zeros."""
    return np.array([[1.0] * k + [0.0] * (r - k) for k in sizes])


def test_planted_q_and_its_ablations():
    """Peaks of s and 10 - s have the same mean deviation, so that only a peak in D tells; a random D = {9} misleads."""
    H = peaks([7, 6, 5, 5, 3], [3, 4, 5, 5, 7])
    found, counts = evidence(H, [7])
    found = Evidence(found.rows, H, found.train, features=feature_table(counts, [7]), seed=3)
    check(found, {"q_score": RANKED, "q_without_d": COIN})
    drawn = aurocs(found)["q_random_d"]
    assert len(drawn) == 20
    assert {round(12 * auroc, 9) for auroc in drawn} == {11.0, 1.0}  # D is drawn as {7} or as {9}, never a dead feature


def test_planted_q_per_sigma():
    """Wrong rows are eight times as large, and lead by Q, which follows the scale; Q / sigma does not."""
    H = peaks([7, 6, 5, 5, 3], [3, 4, 5, 5, 7]) * np.where(CORRECT, 1.0, 8.0)[:, None]
    check(evidence(H, [7])[0], {"q_score": Fraction(0), "q_per_sigma": RANKED})


def test_planted_sparsity():
    """Of k equal peaks Q1 is sqrt(r - k), Hoyer's sparsity and kurtosis fall with k; the norm is sqrt(k)."""
    found, _ = evidence(plateaus([1, 2, 3, 3, 4]), [0])
    check(
        found,
        {"q1": RANKED, "hoyer": RANKED, "kurtosis": RANKED, "l2_norm": REVERSED, "max_activation": COIN},
    )
    values, _ = compute_scores(found)
    np.testing.assert_allclose(values["hoyer"], (8 - np.sqrt([1, 2, 3, 3, 4])) / 7, rtol=1e-6)
    np.testing.assert_allclose(values["q1"], [np.sqrt(64 - k) / k for k in (1, 2, 3, 3, 4)], rtol=1e-6)
    share = np.array([1, 2, 3, 3, 4]) / 64
    np.testing.assert_allclose(values["kurtosis"], 1 / (share * (1 - share)) - 6, rtol=1e-6)


def test_planted_size():
    """Rows that differ in scale alone: the norm and the peak tell, what does not depend on scale is a coin."""
    found, _ = evidence(plateaus([2] * 5) * np.array([16.0, 8.0, 4.0, 4.0, 2.0])[:, None], [0])
    check(
        found,
        {
            **{"l2_norm": RANKED, "max_activation": RANKED},
            **{"q1": COIN, "hoyer": COIN, "kurtosis": COIN, "q_per_sigma": COIN, "knn_similarity": COIN},
        },
    )


def test_planted_neighbours():
    """All training rows lie in one direction, under cosines of 1, 0.8, 0.6, 0.6 and 0; norms mislead."""
    H = np.array([[1.0, 0, 0], [1.6, 1.2, 0], [2.4, 0, 3.2], [2.4, 3.2, 0], [0, 0, 9.0]])
    found, _ = evidence(H, [0], train=np.tile([[5.0, 0, 0]], (30, 1)))
    check(found, {"knn_similarity": RANKED, "l2_norm": REVERSED})
    np.testing.assert_allclose(compute_scores(found)[0]["knn_similarity"], [1, 0.8, 0.6, 0.6, 0], atol=1e-7)


def test_only_the_20_nearest_rows_count():
    near, far = np.tile([[0.6, 0.8]], (15, 1)), np.tile([[0.0, 1.0]], (60, 1))
    found, _ = evidence([[2.0, 0.0]] * 5, [0], train=np.concatenate([far, near]))
    assert compute_scores(found)[0]["knn_similarity"] == pytest.approx(15 * 0.6 / 20)


def test_planted_prototypes():
    """Prototypes are the two axes; rows lie 0, 1, 2, 2 and 3 steps away from the first, the last between them."""
    angles = np.array([0, 1, 2, 2, 3]) * np.pi / 12
    H = np.column_stack([np.cos(angles), np.sin(angles)]) * np.array([[1.0], [2], [3], [3], [9]])
    H[3] = H[2][::-1]  # as far from the second
    found, _ = evidence(H, [0], train=np.repeat(np.eye(2), 30, axis=0))
    check(found, {"prototype_distance": RANKED, "prototype_margin": RANKED, "l2_norm": REVERSED})
    values, _ = compute_scores(found)
    np.testing.assert_allclose(values["prototype_distance"], -2 * np.sin(angles / 2), atol=1e-7)
    np.testing.assert_allclose(values["prototype_margin"][-1], 0.0, atol=1e-7)


def test_planted_mahalanobis():
    """Training rows around (3, 3), alike in all directions: rows at distances 0, 1, 2, 2 and 5 from there."""
    train = 3.0 + np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]] * 10)
    found, _ = evidence([[3.0, 3], [3, 4], [3, 1], [5, 3], [6, 7]], [0], train=train)
    check(found, {"mahalanobis": RANKED})
    # The variance of either feature is 1 / 2, and shrinking towards a multiple of the identity changes nothing.
    expected = -np.sqrt(2) * np.array([0, 1, 2, 2, 5])
    np.testing.assert_allclose(compute_scores(found)[0]["mahalanobis"], expected, rtol=1e-6)


def test_planted_augmentation_cosine():
    """Of two views one is the image itself, the other lies under a cosine of 1, 0.8, 0.6, 0.6 and 0."""
    second = np.array([[2.0, 0], [4, 3], [3, 4], [6, -8], [0, 1]])
    H = np.tile([[7.0, 0.0]], (5, 1))
    found, _ = evidence(H, [0], views=np.stack([H, second], axis=1))
    check(found, {"augmentation_cosine": RANKED})
    np.testing.assert_allclose(compute_scores(found)[0]["augmentation_cosine"], [1, 0.9, 0.8, 0.8, 0.5], rtol=1e-6)


def test_planted_neighbourhood_consistency():
    """25 training rows at each of four axes; an image between the first two keeps all 50 neighbours, half, or none."""
    same, half, none = [1.0, 1, 0, 0], [0, 1.0, 1, 0], [0, 0, 1.0, 1]
    views = np.array([[same, same], [same, half], [half, half], [same, none], [none, none]])
    found, _ = evidence([same] * 5, [0], train=np.repeat(np.eye(4), 25, axis=0), views=views)
    check(found, {"neighborhood_consistency": RANKED})
    assert compute_scores(found)[0]["neighborhood_consistency"].tolist() == [1, 0.75, 0.5, 0.5, 0]


def test_planted_confidence():
    confidence = np.array([0.9, 0.8, 0.7, 0.7, 0.2])
    check(evidence(plateaus([2] * 5), [0], confidence=confidence)[0], {"softmax": RANKED})


def test_every_score_has_a_planted_case():
    source = globals()
    planted = {name for test in source if test.startswith("test_planted") for name in source[test].__code__.co_consts}
    names = {name for constant in planted for name in (constant if isinstance(constant, tuple) else [constant])}
    assert {*NAMES} <= names


def cluttered(rng, n=120, m=150, r=32, views=2):
    H, train = rng.gamma(0.4, size=(n, r)).astype(np.float32), rng.gamma(0.4, size=(m, r)).astype(np.float32)
    shifted = np.stack([H + rng.gamma(0.4, size=H.shape).astype(np.float32) for _ in range(views)], axis=1)
    found, counts = evidence(H, range(10, 20), epsilon=1.5, train=train)
    features = feature_table(counts, range(10, 20))
    return Evidence(found.rows, H, train, rng.random(n), features, shifted, seed=5)


def test_scores_of_cluttered_rows_are_what_loops_find(rng):
    found = cluttered(rng)
    values, left_out = compute_scores(found)
    assert not left_out and list(values) == NAMES
    H, train, views = found.embedding.tolist(), found.train.tolist(), found.views.tolist()
    expected = {
        "q_score": [paper.q_score(row, range(10, 20), 1.5) for row in H],
        "q_without_d": [paper.q_score(row, range(32), 1.5) for row in H],
        "q_per_sigma": [paper.q_score(row, range(10, 20), 1.5) / paper.mean_and_std(row)[1] for row in H],
        "q1": [paper.q_score_v1(row) for row in H],
        "l2_norm": [np.linalg.norm(row) for row in H],
        "max_activation": [max(row) for row in H],
        "hoyer": [reference.hoyer(row) for row in H],
        "kurtosis": [reference.kurtosis(row) for row in H],
        "knn_similarity": [np.mean([s for s, _ in reference.nearest_rows(row, train, 20)]) for row in H],
        "mahalanobis": [-reference.mahalanobis(row, train) for row in H],
        "augmentation_cosine": [reference.view_cosine(row, own) for row, own in zip(H, views, strict=True)],
        "neighborhood_consistency": [
            reference.neighborhood_consistency(row, own, train, 50) for row, own in zip(H, views, strict=True)
        ],
        "softmax": found.confidence,
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(values[name], scores, rtol=3e-6, atol=1e-6, err_msg=name)


def test_random_sets_have_the_size_of_d_and_are_scored_as_d_is(rng):
    found = cluttered(rng)
    values, _ = compute_scores(found)
    draws = np.random.default_rng(5)  # the documented recipe: 20 draws from the features that fire
    alive = np.flatnonzero(found.features["count"].to_numpy())
    for column in values["q_random_d"].T:
        D = set(draws.choice(alive, 10, replace=False).tolist())
        expected = [paper.q_score(row, D, 1.5) for row in found.embedding.tolist()]
        np.testing.assert_allclose(column, expected, rtol=1e-6)


def test_rows_that_are_their_own_training_rows_are_not_their_own_neighbours(rng):
    given = cluttered(rng, n=60)
    H, views = given.embedding, given.views
    values, _ = compute_scores(Evidence(given.rows, H, H, views=views, train_is_test=True))
    similarity = [
        np.mean([s for s, _ in reference.nearest_rows(row, H.tolist(), 20, without=i)])
        for i, row in enumerate(H.tolist())
    ]
    consistency = [
        reference.neighborhood_consistency(row, own, H.tolist(), 50, without=i)
        for i, (row, own) in enumerate(zip(H.tolist(), views.tolist(), strict=True))
    ]
    np.testing.assert_allclose(values["knn_similarity"], similarity, rtol=1e-6)
    np.testing.assert_allclose(values["neighborhood_consistency"], consistency, rtol=1e-6)
    assert (compute_scores(Evidence(given.rows, H, H))[0]["knn_similarity"] > values["knn_similarity"]).all()


def test_what_is_missing_is_left_out_and_named(rng):
    found = cluttered(rng)
    values, left_out = compute_scores(
        Evidence(found.rows, found.embedding, found.train, views_missing="3 of 120 rows lack views")
    )
    assert left_out == {
        "q_random_d": "no feature table was given",
        "augmentation_cosine": "3 of 120 rows lack views",
        "neighborhood_consistency": "3 of 120 rows lack views",
        "softmax": "no probe was fitted",
    }
    assert [*values] == [name for name in NAMES if name not in left_out]


def test_too_few_training_rows_cost_only_the_scores_that_need_them(rng):
    found = cluttered(rng)
    _, left_out = compute_scores(
        Evidence(found.rows, found.embedding, found.train[:1], found.confidence, found.features, found.views)
    )
    assert {*left_out} == {"prototype_distance", "prototype_margin", "mahalanobis"}
    assert left_out["mahalanobis"] == "it takes training rows that differ to fit a Gaussian, got 1 alike"


def test_scores_that_are_not_finite_are_left_out(rng):
    found = cluttered(rng)
    norms = found.rows["l2_norm"].to_numpy().copy()
    norms[:7] = np.inf
    place = found.rows.column_names.index("l2_norm")
    rows = found.rows.set_column(place, "l2_norm", pa.array(norms))
    _, left_out = compute_scores(Evidence(rows, found.embedding, found.train, found.confidence))
    assert left_out["l2_norm"] == "it is not finite for 7 of 120 rows"


def test_a_constant_score_stays_and_is_a_coin(rng):
    H = np.ones((60, 8))
    found, counts = evidence(H, [], train=rng.gamma(0.4, size=(80, 8)))
    values, left_out = compute_scores(
        Evidence(found.rows, H, found.train, np.ones(60), feature_table(counts, []), np.ones((60, 2, 8)))
    )
    assert not left_out
    correct = rng.random(60) < 0.6
    for name, value in values.items():
        for column in np.atleast_2d(value.T):
            assert failure_statistics(column, correct)["auroc"] == pytest.approx(0.5), name


def test_equal_rows_score_equally(rng):
    found = cluttered(rng, n=40)
    twice = [np.concatenate([part, part]) for part in (found.embedding, found.views, found.confidence)]
    rows = pa.concat_tables([found.rows, found.rows])
    values, _ = compute_scores(Evidence(rows, twice[0], found.train, twice[2], found.features, twice[1]))
    for name, value in values.items():
        np.testing.assert_array_equal(value[:40], value[40:], err_msg=name)


def test_scores_are_as_exact_as_the_evaluation_table(rng):
    values, _ = compute_scores(cluttered(rng))
    for value in values.values():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, value.astype(np.float32))


def test_scores_follow_their_rows(rng):
    found = cluttered(rng)
    order = rng.permutation(120)
    moved = Evidence(
        found.rows.take(order),
        found.embedding[order],
        found.train,
        found.confidence[order],
        found.features,
        found.views[order],
        seed=5,
    )
    values, again = compute_scores(found)[0], compute_scores(moved)[0]
    for name, value in values.items():
        np.testing.assert_allclose(again[name], value[order], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_slice_of_a_score_table_is_read_as_such(rng):
    found = cluttered(rng)
    part = Evidence(found.rows.slice(30, 50), found.embedding[30:80], found.train)
    np.testing.assert_array_equal(BY_NAME["q_without_d"].compute(part), BY_NAME["q_without_d"].compute(found)[30:80])


@pytest.mark.parametrize("signed", [False, True])
def test_what_score_writes_is_evidence(tmp_path, rng, signed):
    """Q, Q without D and Q / sigma of a score table, also where rows were scaled and thresholded on both sides."""
    H = (rng.normal(size=(200, 40)) if signed else rng.gamma(0.3, size=(200, 40))).astype(np.float32)
    np.save(tmp_path / "e.npy", H)
    qscore.score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=1.5)
    rows, features, record = read_scored(tmp_path / "s.parquet")
    assert record["signed"] == signed
    values, _ = compute_scores(Evidence(rows, H, H, features=features, train_is_test=True))
    scaled = H.tolist()
    if signed:
        scaling = (features["center"].to_pylist(), features["scale"].to_pylist())
        scaled = [paper.apply_scaling(row, *scaling) for row in scaled]
    D = paper.discriminative_features(paper.activation_rates(scaled, 1.5, signed))
    expected = {
        "q_score": [paper.q_score(row, D, 1.5, signed) for row in scaled],
        "q_without_d": [paper.q_score(row, range(40), 1.5, signed) for row in scaled],
        "q_per_sigma": [paper.q_score(row, D, 1.5, signed) / paper.mean_and_std(row)[1] for row in scaled],
        "l2_norm": np.linalg.norm(H, axis=1),
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(values[name], scores, rtol=3e-6, err_msg=name)


def test_the_registry_says_of_each_score_what_it_is():
    assert len(set(NAMES)) == len(SCORES) == 16
    assert [score.name for score in SCORES if score.sign == -1] == ["prototype_distance", "mahalanobis"]
    assert [score.name for score in SCORES if score.needs_labels] == ["softmax"]
    kinds = {kind: [score.name for score in SCORES if score.kind == kind] for kind in ("q", "ablation", "bound")}
    assert kinds["q"] == ["q_score"] and kinds["bound"] == ["softmax"]
    assert kinds["ablation"] == ["q_without_d", "q_random_d", "q_per_sigma"]
    assert all(score.title and score.reason for score in SCORES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": np.ones((119, 32))}, "rows: expected 119 rows as in embedding, got 120"),
        ({"confidence": np.ones(7)}, "confidence: expected 120 rows as in embedding, got 7"),
        ({"views": np.ones((9, 2, 32))}, "views: expected 120 rows as in embedding, got 9"),
        ({"views": np.ones((120, 2, 31))}, "views: expected 32 features as in embedding, got 31"),
        ({"train": np.ones((150, 33))}, "train: expected 32 features as in embedding, got 33"),
        ({"features": feature_table(np.ones(5), [1])}, "features: expected 32 features as in embedding, got 5"),
        ({"train_is_test": True}, "train: expected 120 rows as in embedding, got 150"),
    ],
)
def test_evidence_that_does_not_fit_together_is_refused(rng, change, message):
    found = cluttered(rng)
    parts = {name: getattr(found, name) for name in ("rows", "embedding", "train", "confidence", "features", "views")}
    with pytest.raises(QScoreError, match=message):
        compute_scores(Evidence(**(parts | change)))
