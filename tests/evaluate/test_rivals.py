import numpy as np
import pytest
from reference import paper
from reference import rivals as reference
from sklearn.covariance import ledoit_wolf

from qscore import QScoreError, scan
from qscore.evaluate import rivals


@pytest.fixture(params=["whole", "blocks"])
def blocks(request, monkeypatch):
    """All rows at once, or a few at a time."""
    if request.param == "blocks":
        monkeypatch.setattr(rivals, "BLOCK_VALUES", 70)
        monkeypatch.setattr(rivals, "SEARCH_VALUES", 110)


def features(rng, n=30, r=10, dtype=np.float32):
    H = rng.gamma(0.5, size=(n, r)).astype(dtype)
    H[3], H[4] = 0.0, 2.5  # a row without direction, and a constant one
    return H


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sparsity_and_kurtosis_are_what_their_definitions_say(rng, dtype, blocks):
    H = features(rng, dtype=dtype)
    np.testing.assert_allclose(rivals.hoyer(H), [reference.hoyer(row) for row in H.tolist()], atol=1e-12)
    np.testing.assert_allclose(rivals.kurtosis(H), [reference.kurtosis(row) for row in H.tolist()], rtol=1e-9)
    assert rivals.hoyer(H)[3] == 0.0 and rivals.kurtosis(H)[4] == -2.0


def test_rows_that_hardly_vary_have_a_kurtosis():
    row = np.full(10, 1.0)
    row[3] = np.nextafter(1.0, 2.0)
    assert rivals.kurtosis(row[None]) == pytest.approx([reference.kurtosis(row.tolist())])


def test_cosine_of_views(rng, blocks):
    H = features(rng)
    views = rng.normal(size=(30, 3, 10)).astype(np.float32)
    views[7, 1] = 0.0
    expected = [reference.view_cosine(row, own) for row, own in zip(H.tolist(), views.tolist(), strict=True)]
    np.testing.assert_allclose(rivals.view_cosine(H, views), expected, atol=1e-12)
    assert rivals.view_cosine(H, views)[3] == 0.0


@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_rows_are_all_that_a_loop_finds(rng, k, blocks):
    H, train = features(rng), features(rng, n=25)
    similarity, index = rivals.nearest_rows(H, train, k)
    assert similarity.shape == index.shape == (30, min(k, 25))
    for i, row in enumerate(H.tolist()):
        expected = reference.nearest_rows(row, train.tolist(), k)
        np.testing.assert_allclose(similarity[i], [cosine for cosine, _ in expected], atol=1e-12)
        if i != 3:  # a row without direction is as near to all
            assert set(index[i].tolist()) == {j for _, j in expected}


def test_rows_without_direction_are_nobodys_neighbours():
    H = np.array([[1.0, 0.0], [0.0, 0.0]])
    similarity, index = rivals.nearest_rows(H, np.array([[0.0, 0.0], [3.0, 4.0]]), 2)
    np.testing.assert_allclose(similarity, [[0.6, 0.0], [0.0, 0.0]], atol=1e-15)
    assert index[0].tolist() == [1, 0]


@pytest.mark.parametrize("k", [1, 4, 50])
def test_a_row_is_never_its_own_neighbour(rng, k, blocks):
    H = features(rng)
    similarity, index = rivals.nearest_rows(H, H, k, own=True)
    assert index.shape == (30, min(k, 29)) and not (index == np.arange(30)[:, None]).any()
    for i, row in enumerate(H.tolist()):
        expected = reference.nearest_rows(row, H.tolist(), k, without=i)
        np.testing.assert_allclose(similarity[i], [cosine for cosine, _ in expected], atol=1e-12)


def test_a_row_among_its_duplicates_is_not_its_own_neighbour_either(blocks):
    H = np.tile(np.array([[1.0, 2.0, 3.0]]), (40, 1))
    similarity, index = rivals.nearest_rows(H, H, 5, own=True)
    assert not (index == np.arange(40)[:, None]).any()
    assert all(len(set(row)) == 5 for row in index.tolist())
    np.testing.assert_allclose(similarity, 1.0)


@pytest.mark.parametrize("own", [False, True])
def test_no_rows_to_be_near_to_are_refused(own):
    rows = np.ones((int(own), 3))
    with pytest.raises(QScoreError, match=f"it takes at least {1 + own} training rows .* got {int(own)}"):
        rivals.nearest_rows(np.ones((int(own), 3)), rows, 5, own=own)


def test_shared_neighbours_are_counted_as_sets():
    a = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [9, 8, 7, 6]])
    b = np.array([[4, 3, 2, 1], [5, 6, 7, 8], [5, 6, 0, 9]])
    assert rivals.shared_neighbors(a, b).tolist() == [1.0, 0.0, 0.5]


def test_prototypes_are_the_centres_of_clusters(rng):
    directions = np.eye(6)[:4]
    members = np.repeat(np.arange(4), 100)
    train = directions[members] * rng.uniform(1, 9, size=(400, 1)) + rng.normal(scale=1e-3, size=(400, 6))
    centers = rivals.prototypes(train)
    assert len(centers) == 10  # at most one for each 39 rows; sqrt(400 / 2) would be 14
    nearest = (centers @ directions.T).argmax(axis=1)
    assert set(nearest.tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(centers, directions[nearest], atol=0.02)
    np.testing.assert_array_equal(centers, rivals.prototypes(train))


@pytest.mark.parametrize(("m", "k"), [(2, 2), (50, 2), (800, 20), (3200, 40)])
def test_the_number_of_prototypes_follows_from_the_number_of_rows(rng, m, k):
    assert len(rivals.prototypes(rng.normal(size=(m, 3)))) == k


def test_training_rows_that_are_all_alike_have_prototypes_too():
    centers = rivals.prototypes(np.ones((100, 4)))
    nearest, second = rivals.prototype_distances(np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0]]), centers)
    np.testing.assert_allclose(nearest, [0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(second, nearest, atol=1e-12)


def test_a_single_row_has_no_prototypes():
    with pytest.raises(QScoreError, match="it takes at least 2 training rows to find prototypes, got 1"):
        rivals.prototypes(np.ones((1, 3)))


def test_distances_to_prototypes(rng, blocks):
    H, centers = features(rng), rng.normal(size=(5, 10))
    found = np.column_stack(rivals.prototype_distances(H, centers))
    expected = [reference.prototype_distances(row, centers.tolist()) for row in H.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_row_at_a_prototype_is_at_distance_0_exactly():
    centers = rivals._unit(np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 0.0]]))
    assert rivals.prototype_distances(np.array([[3.0, 1.0, 2.0], [6.0, 2.0, 4.0]]), centers)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("m", [2, 7, 60])
def test_mahalanobis_distance_is_that_of_the_shrunk_covariance(rng, m, blocks):
    H, train = features(rng), rng.gamma(0.5, size=(m, 10))
    if m == 2:
        with np.errstate(over="raise"):
            assert np.isfinite(rivals.mahalanobis(H, train)).all()
        return
    np.testing.assert_allclose(reference.ledoit_wolf_covariance(train), ledoit_wolf(train)[0], rtol=1e-9, atol=1e-12)
    expected = [reference.mahalanobis(row, train) for row in H]
    np.testing.assert_allclose(rivals.mahalanobis(H, train), expected, rtol=1e-8)


def test_features_that_never_vary_have_an_inverse_too(rng):
    train = rng.normal(size=(500, 6))
    train[:, 2] = 4.0
    H = np.tile(train.mean(axis=0), (3, 1))
    H[1, 2] += 1.0
    H[2, 3] += 1.0
    at_mean, never, often = rivals.mahalanobis(H, train)
    assert at_mean < 1e-9 and 2 * often < never < np.inf


@pytest.mark.parametrize("train", [np.ones((1, 3)), np.full((9, 3), 2.0)])
def test_a_gaussian_needs_rows_that_differ(train):
    with pytest.raises(QScoreError, match=f"training rows that differ to fit a Gaussian, got {len(train)} alike"):
        rivals.mahalanobis(np.zeros((2, 3)), train)


def test_many_training_rows_are_sampled_and_the_seed_says_which(rng, monkeypatch):
    train = rng.normal(size=(1000, 4))
    whole = rivals.mahalanobis(train, train)
    monkeypatch.setattr(rivals, "FIT_VALUES", 4 * 400)
    sampled = rivals.mahalanobis(train, train, seed=1)
    np.testing.assert_allclose(sampled, whole, rtol=0.3)
    assert not np.allclose(sampled, whole, rtol=1e-6)
    np.testing.assert_array_equal(sampled, rivals.mahalanobis(train, train, seed=1))
    assert not np.array_equal(sampled, rivals.mahalanobis(train, train, seed=2))
    assert len(rivals.prototypes(train)) == 10  # of 400 rows sampled


def test_features_are_drawn_without_replacement_from_those_that_fire(rng):
    counts = np.array([3, 0, 1, 5, 0, 2, 8])
    drawn = rivals.draw_features(counts, 3, 500, seed=4)
    assert drawn.shape == (500, 3) and set(drawn.ravel().tolist()) == {0, 2, 3, 5, 6}
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert np.bincount(drawn.ravel())[[0, 2, 3, 5, 6]].min() > 250  # 300 each, whatever their counts
    np.testing.assert_array_equal(drawn, rivals.draw_features(counts, 3, 500, seed=4))
    assert rivals.draw_features(counts, 0, 4).shape == (4, 0)


def test_q_of_other_features_is_q(relu_table):
    found = scan(relu_table, 2.0)
    chosen = np.zeros(64, dtype=bool)
    chosen[[3, 13, 20, 21, 40]] = True
    scores = rivals.mean_deviation(found.indptr, found.active, found.deviation, chosen)
    expected = [paper.q_score(row, [3, 13, 20, 21, 40], 2.0) for row in relu_table.tolist()]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_the_spread_of_scaled_rows(rng, blocks):
    H = rng.normal(size=(20, 10))
    center, scale = rng.normal(size=10), rng.uniform(0, 2, size=10)
    scale[4] = 0.0
    expected = [paper.mean_and_std(paper.apply_scaling(row, center, scale))[1] for row in H.tolist()]
    np.testing.assert_allclose(rivals.scaled_std(H, center, scale), expected, rtol=1e-9)
