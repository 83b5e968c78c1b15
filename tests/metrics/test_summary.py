import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import metrics as reference
from scipy.stats import ortho_group

from qscore import QScoreError
from qscore.metrics import representation_metrics

SPECTRAL = ("rankme", "stable_rank", "nesum", "alpha_req")


def measured(H, **options):
    return representation_metrics(H, resamples=20, **options)


def values(found, names):
    return {name: getattr(found, name) for name in names}


def test_everything_equals_the_definitions(rng):
    H = rng.gamma(0.5, size=(60, 12)) @ rng.normal(size=(12, 12))
    image = np.repeat(np.arange(20), 3)
    found = measured(H, views=[(H, image)], counts=np.array([0, 0, 3, *[1] * 9]))
    assert values(found, SPECTRAL) == pytest.approx({name: getattr(reference, name)(H) for name in SPECTRAL}, rel=1e-7)
    assert found.uniformity == pytest.approx(reference.uniformity(H))
    assert found.normalized_std == pytest.approx(reference.normalized_std(H))
    assert found.normalized_std_share == pytest.approx(reference.normalized_std(H) * math.sqrt(12))
    assert found.hoyer.value == pytest.approx(reference.hoyer(H)) and found.hoyer.contains(found.hoyer.value)
    assert found.alignment.value == pytest.approx(reference.alignment(H, image))
    counted = ("n", "n_invalid", "n_zero", "n_features", "n_uniformity", "n_alignment", "n_silent")
    assert list(values(found, counted).values()) == [60, 0, 0, 12, 60, 20, 2]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 5000), max_size=6), st.sampled_from(["f2", "f4", "f8"]))
def test_no_result_depends_on_how_rows_are_cut(seed, cuts, dtype):
    rng = np.random.default_rng(seed)
    H = rng.gamma(0.3, size=(5000, 4)).astype(dtype)
    H[rng.random(5000) < 0.1] = 0
    H[rng.random(5000) < 0.1, 1] = np.nan
    image = np.repeat(np.arange(2500), 2)
    cuts = sorted(cuts)
    parts = np.split(H, cuts)
    views = [(H, image)]
    cut_views = zip(parts, np.split(image, cuts), strict=True)
    whole, cut = measured(H, views=views, sample=99), measured(iter(parts), views=cut_views, sample=99)
    alike = dataclasses.replace(cut, alignment=whole.alignment)
    assert dataclasses.asdict(alike) == dataclasses.asdict(whole)
    assert cut.n_alignment == whole.n_alignment and cut.alignment.value == pytest.approx(whole.alignment.value)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
def test_rotation_scale_and_order(seed, exponent):
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(80, 7)) + 0.5
    whole = measured(H)
    rotated = measured(H @ ortho_group.rvs(7, random_state=seed))
    for name in (*SPECTRAL, "uniformity"):
        assert getattr(rotated, name) == pytest.approx(getattr(whole, name), rel=1e-7)
    scaled, shuffled = measured(H * 2.0**exponent), measured(H[rng.permutation(80)][:, rng.permutation(7)])
    for name in (*SPECTRAL, "uniformity", "normalized_std", "n_dead", "n_constant"):
        assert getattr(scaled, name) == pytest.approx(getattr(whole, name), rel=1e-9)
        assert getattr(shuffled, name) == pytest.approx(getattr(whole, name), rel=1e-9)
    assert scaled.hoyer.value == pytest.approx(whole.hoyer.value)


def test_moving_the_rows_changes_what_is_not_centred_alone(rng):
    H = rng.normal(size=(200, 12))
    still, moved = measured(H), measured(H + 100.0)
    assert moved.nesum == pytest.approx(still.nesum) and moved.alpha_req == pytest.approx(still.alpha_req)
    assert moved.stable_rank == pytest.approx(1, abs=1e-2) and moved.rankme < 0.5 * still.rankme
    assert moved.normalized_std_share < 0.02 < 0.9 < still.normalized_std_share


def test_one_hot_rows_are_what_can_be_worked_out():
    r = 16
    found = measured(np.tile(np.eye(r), (4, 1)))
    assert found.rankme == pytest.approx(r, rel=1e-4) and found.stable_rank == pytest.approx(r)
    assert found.nesum == pytest.approx(r - 1)  # the centred ones sum to zero
    assert found.hoyer.value == 1.0
    assert found.normalized_std == pytest.approx(math.sqrt(1 / r * (1 - 1 / r)))
    pairs, equal = 64 * 63 / 2, r * 6
    assert found.uniformity == pytest.approx(math.log((equal + (pairs - equal) * math.exp(-4)) / pairs))


def test_normal_rows_of_identity_covariance(rng):
    r, n = 32, 50_000
    found = measured(rng.normal(size=(n, r)))
    assert found.rankme == pytest.approx(r, rel=1e-3) and found.nesum == pytest.approx(r, rel=0.1)
    assert found.normalized_std_share == pytest.approx(1, abs=1e-3) and abs(found.alpha_req) < 0.05
    assert found.n_uniformity == 4096 and found.uniformity == pytest.approx(-4 * (1 - 2 / r), abs=0.02)


def test_planted_power_law(rng):
    r = 200
    H = rng.normal(size=(4000, r))
    H = np.linalg.qr(H - H.mean(0))[0] * np.arange(1.0, r + 1) ** -0.6  # eigenvalues fall with 1.2
    assert measured(H @ ortho_group.rvs(r, random_state=0) + 3).alpha_req == pytest.approx(1.2, abs=1e-6)


def test_duplicated_rows_change_no_spectrum(rng):
    H = rng.normal(size=(100, 8))
    once, twice = measured(H), measured(np.concatenate([H, H]))
    for name in (*SPECTRAL, "normalized_std"):
        assert getattr(twice, name) == pytest.approx(getattr(once, name), rel=1e-9)
    assert twice.uniformity > once.uniformity  # equal pairs


def test_dead_constant_and_silent_features(rng):
    H = rng.normal(size=(50, 6))
    H[:, 0], H[:, 1], H[:, 2] = 0.0, 0.1, 0.0
    H[17, 2] = 1e-30
    H[3, 0] = np.nan  # invalid rows bring no feature to life
    found = measured(H, counts=np.array([0, 0, 1, 0, 5, 5]))
    assert (found.n_dead, found.n_constant, found.n_silent) == (1, 2, 3)
    assert measured(H).n_silent is None


def test_a_sample_of_rows_is_drawn_evenly_and_by_its_seed():
    """Of one-hot rows only uniformity shows which were drawn: it must scatter about the truth."""
    n, r = 3000, 6
    H = np.eye(r)[np.arange(n) * r // n]  # sorted by kind: the first rows alone would be all alike
    truth = measured(H).uniformity
    drawn = [measured(H, sample=300, seed=seed) for seed in range(30)]
    assert {found.n_uniformity for found in drawn} == {300}
    assert np.mean([found.uniformity for found in drawn]) == pytest.approx(truth, abs=0.02)
    assert measured(H, sample=300, seed=3) == drawn[3] != drawn[4]


DEGENERATE = {
    "one row": np.array([[1.0, 2.0, 0.0]]),
    "zero": np.zeros((5, 3)),
    "one zero row": np.zeros((1, 3)),
    "constant": np.full((5, 3), 0.1),
    "invalid": np.full((5, 3), np.nan),
    "more features than rows": np.random.default_rng(0).normal(size=(3, 50)),
    "two features": np.random.default_rng(0).normal(size=(9, 2)),
    "overflow": np.array([[1e200, 1.0], [1.0, -1e300], [2.0, 2.0]]),
    "float32 extremes": np.array([[3e38, 1e-45], [-3e38, 1.0]], dtype=np.float32),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input_gives_numbers_or_nan(name):
    H = DEGENERATE[name]
    found = measured(H, views=[(H, np.zeros(len(H), dtype=int))], counts=np.zeros(H.shape[1], dtype=int))
    assert found.n == len(H) and found.n_silent == H.shape[1]
    undefined = {
        "one row": {"nesum", "alpha_req", "uniformity"},
        "zero": {*SPECTRAL, "uniformity", "normalized_std"},
        "one zero row": {*SPECTRAL, "uniformity", "normalized_std"},
        "constant": {"nesum", "alpha_req"},
        "invalid": {*SPECTRAL, "uniformity", "normalized_std"},
        "more features than rows": {"alpha_req"},
        "two features": {"alpha_req"},
        "overflow": set(SPECTRAL),
        "float32 extremes": {"alpha_req"},
    }[name]
    named = (*SPECTRAL, "uniformity", "normalized_std")
    assert {metric for metric in named if math.isnan(getattr(found, metric))} == undefined


def test_constant_rows_are_a_collapse():
    found = measured(np.full((50, 4), 0.3))
    assert found.normalized_std == 0.0 and found.uniformity == pytest.approx(0, abs=1e-12)
    assert found.rankme == pytest.approx(1, abs=1e-4) and (found.n_dead, found.n_constant) == (0, 4)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "expected at least one row, got none"),
        ([np.empty((0, 4))], {}, "expected at least one row, got none"),
        ([np.zeros((2, 3), dtype=int)], {}, "batches: expected floating-point values, got int64"),
        ([np.zeros(3)], {}, "batches: expected a 2-D array"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], {}, "batches: expected 3 features as in the first, got shape (2, 4)"),
        (
            [np.eye(3)],
            {"counts": np.zeros(4, dtype=int)},
            "counts: expected one for each of 3 features, got shape (4,)",
        ),
        ([np.eye(3)], {"sample": 1}, "expected sample >= 2, resamples >= 1, seed >= 0; got 1, 20 and 0"),
        ([np.eye(3)], {"views": [(np.eye(4), np.zeros(4))]}, "views: expected shape (b, 3) and an image for each row"),
        ([np.eye(3)], {"views": [(np.eye(3), np.zeros(4))]}, "got shapes (3, 3) and (4,)"),
    ],
)
def test_bad_input_is_refused(batches, options, message):
    with pytest.raises(QScoreError) as caught:
        measured(batches, **options)
    assert message in str(caught.value)
