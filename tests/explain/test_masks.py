import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import masks as oracle

import qscore
from qscore import QScoreError
from qscore.explain import (
    energy_inside,
    gaussian_map,
    mask_iou,
    mean_over_sets,
    pointing_game,
    random_maps,
    soft_iou,
    summarise,
)
from qscore.metrics import mean_interval

FEW = st.sampled_from([0.0, 0.25, 1.0, 3.0])  # so that ties are many
small = st.tuples(arrays(np.float32, (3, 4), elements=FEW), arrays(bool, (3, 4)))


def one(metric, heat, mask, **options):
    mask = torch.from_numpy(np.asarray(mask))[None]
    return metric(torch.from_numpy(heat)[None, None], mask, **options)[0, 0].item()


def smooth(rng, b=3, k=4, h=12, w=10):
    heat = torch.from_numpy(rng.random((b, k, 4, 3)))
    return torch.nn.functional.interpolate(heat, size=(h, w), mode="bilinear"), torch.from_numpy(
        rng.random((b, h, w)) < 0.3
    )


def test_it_is_public():
    assert qscore.mask_iou is mask_iou


@settings(deadline=None)
@given(small)
def test_iou_is_the_mean_over_all_ways_to_break_ties(example):
    heat, mask = example
    assume(0 < mask.sum() < mask.size)
    assert one(mask_iou, heat, mask) == pytest.approx(oracle.top_iou(heat, mask.tolist()), abs=1e-12)


@settings(deadline=None)
@given(small, st.sampled_from([0.25, 0.5, 1.0]))
def test_iou_at_a_fraction_of_the_maximum(example, threshold):
    heat, mask = example
    assume(0 < mask.sum() < mask.size)
    expected = oracle.threshold_iou(heat, mask, threshold)
    assert one(mask_iou, heat, mask, threshold=threshold) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(
    arrays(np.float32, (3, 4), elements=FEW), arrays(np.float32, (3, 4), elements=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
)
def test_soft_iou(heat, mask):
    assume(0 < (mask >= 0.5).sum() < mask.size)
    assert one(soft_iou, heat, mask) == pytest.approx(oracle.soft_iou(heat, mask), abs=1e-6)


def test_quantus_agrees(rng):
    """Where no values tie: of several maxima Quantus asks only whether any is inside."""
    heat, masks = torch.from_numpy(rng.random((3, 4, 12, 10))), torch.from_numpy(rng.random((3, 12, 10)) < 0.3)
    found = {metric: metric(heat, masks).numpy() for metric in (mask_iou, energy_inside, pointing_game)}
    for i in range(3):
        for j in range(4):
            a, s = heat[i, j].numpy(), masks[i].numpy()
            rank = oracle.relevance_rank_accuracy(a, s)
            assert found[mask_iou][i, j] == pytest.approx(rank / (2 - rank))
            assert found[energy_inside][i, j] == pytest.approx(oracle.relevance_mass_accuracy(a, s))
            assert found[pointing_game][i, j] == oracle.pointing_game(a, s)


@settings(deadline=None)
@given(small, st.integers(-3, 3), st.randoms(use_true_random=False))
def test_only_the_order_of_pixels_counts(example, power, random):
    heat, mask = example
    assume(0 < mask.sum() < mask.size)
    before = one(mask_iou, heat, mask)
    assert one(mask_iou, heat * np.float32(2.0**power), mask) == before
    assert one(mask_iou, np.sqrt(heat), mask) == before
    order = list(range(12))
    random.shuffle(order)
    shuffled = one(mask_iou, heat.ravel()[order].reshape(3, 4), mask.ravel()[order].reshape(3, 4))
    assert shuffled == pytest.approx(before, abs=1e-12)
    assert 0 <= before <= 1


def test_ideal_opposite_and_constant_heatmaps():
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    assert one(mask_iou, mask.astype(np.float32), mask) == 1
    assert one(mask_iou, 1 - mask.astype(np.float32), mask) == 0
    blind = one(mask_iou, np.full((4, 4), 7, np.float32), mask)
    assert blind == pytest.approx(1 / 7)  # a quarter of each of the 4 pixels: 1 inside, of 4 + 4 - 1
    assert one(pointing_game, np.full((4, 4), 7, np.float32), mask) == 0.25
    assert one(energy_inside, np.full((4, 4), 7, np.float32), mask) == 0.25


@pytest.mark.parametrize("metric", [mask_iou, soft_iou, pointing_game, energy_inside])
def test_a_heatmap_of_zeros_scores_zero(metric):
    heat = torch.zeros(1, 2, 4, 4)
    heat[0, 1, 0, 0] = 1
    mask = torch.zeros(1, 4, 4)
    mask[0, 0] = 1
    assert metric(heat, mask)[0, 0] == 0 and metric(heat, mask)[0, 1] > 0
    assert mask_iou(heat, mask, threshold=0.5)[0].tolist() == [0, 0.25]


def test_soft_masks_count_from_one_half():
    heat = torch.tensor([[[[4.0, 3.0, 2.0, 1.0]]]])
    assert mask_iou(heat, torch.tensor([[[0.5, 1.0, 0.49, 0.0]]])).item() == 1


def test_every_image_has_its_own_area(rng):
    heat, masks = smooth(rng, b=5)
    masks[1, :6] = True
    together = mask_iou(heat, masks)
    assert together.shape == (5, 4) and together.dtype == torch.float64
    for i in range(5):
        assert torch.equal(together[i : i + 1], mask_iou(heat[i : i + 1], masks[i : i + 1]))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        rounded = heat.to(dtype)
        assert torch.equal(mask_iou(rounded, masks), mask_iou(rounded.double(), masks))


def test_no_features_and_no_images(rng):
    heat, masks = smooth(rng)
    assert mask_iou(heat[:, :0], masks).shape == (3, 0)
    assert mask_iou(heat[:0], masks[:0]).shape == (0, 4)


def test_gradients_do_not_matter(rng):
    heat, masks = smooth(rng)
    assert not mask_iou(heat.requires_grad_(), masks).requires_grad


HEAT = torch.ones(2, 3, 4, 5)
MASK = torch.zeros(2, 4, 5, dtype=torch.bool)
MASK[:, 0] = True


@pytest.mark.parametrize(
    ("heat", "masks", "message"),
    [
        (HEAT[0], MASK, "heatmaps: expected floats of shape (b, k, h, w), got torch.float32 of shape (3, 4, 5)"),
        (HEAT.long(), MASK, "heatmaps: expected floats of shape (b, k, h, w), got torch.int64 of shape (2, 3, 4, 5)"),
        (HEAT, MASK[:, :3], "masks: expected shape (2, 4, 5), one for each image and of the heatmaps' size, got (2, "
         "3, 5)"),
        (HEAT, MASK[:1], "masks: expected shape (2, 4, 5), one for each image and of the heatmaps' size, got (1, 4, "
         "5)"),
        (-HEAT, MASK, "heatmaps: expected finite values >= 0, got others; cut them at 0"),
        (HEAT * torch.nan, MASK, "heatmaps: expected finite values >= 0, got others; cut them at 0"),
        (HEAT * torch.inf, MASK, "heatmaps: expected finite values >= 0, got others; cut them at 0"),
        (HEAT, MASK * 255, "masks: expected booleans or values from 0 to 1, got others; divide grey values by 255"),
        (HEAT, MASK * torch.tensor([1.0, torch.nan])[:, None, None],
         "masks: expected booleans or values from 0 to 1, got others; divide grey values by 255"),
        (HEAT, MASK & torch.tensor([True, False])[:, None, None],
         "masks: expected each to mark some pixels and leave some out, got one that marks no pixel at position 1; "
         "leave that image out"),
        (HEAT, MASK | torch.tensor([True, False])[:, None, None],
         "masks: expected each to mark some pixels and leave some out, got one that marks every pixel at position 0; "
         "leave that image out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("metric", [mask_iou, soft_iou, pointing_game, energy_inside])
def test_what_is_refused(metric, heat, masks, message):
    with pytest.raises(QScoreError) as caught:
        metric(heat, masks)
    assert str(caught.value) == message


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(QScoreError, match=r"threshold: expected a fraction of the maximum in \(0, 1\], got"):
        mask_iou(HEAT, MASK, threshold=threshold)


def test_the_centred_map_finds_what_is_in_the_middle():
    h, w = 40, 60
    y, x = np.mgrid[:h, :w]
    inside = ((y - 19.5) / h) ** 2 + ((x - 29.5) / w) ** 2
    centred = gaussian_map(h, w)[None, None]
    assert mask_iou(centred, torch.from_numpy(inside < 0.05)[None]).item() == 1
    assert mask_iou(centred, torch.from_numpy(inside > 0.2)[None]).item() < 0.05
    assert torch.allclose(centred, centred.flip(2, 3)) and (centred > 0).all()
    # One standard deviation, a quarter of the width, from the middle.
    assert gaussian_map(1, 101)[0, 50 + 25].item() == pytest.approx(np.exp(-0.5 * (25 / 25.25) ** 2))


def test_random_maps_are_blind():
    """A random map of the mask's area p covers p of it, so that the IoU is p / (2 - p) on average."""
    masks = torch.zeros(400, 20, 30, dtype=torch.bool)
    masks[:, 3:13, 5:20] = True  # a quarter
    for grid, within in ((None, 0.005), ((5, 6), 0.03)):
        maps = random_maps([f"image {i}" for i in range(400)], 20, 30, grid=grid)
        assert maps.shape == (400, 1, 20, 30)
        assert mask_iou(maps, masks).mean().item() == pytest.approx(0.25 / 1.75, abs=within)


def test_random_maps_belong_to_an_image_and_a_seed():
    a, b = random_maps(["a", "b"], 4, 5), random_maps(["b", "a"], 4, 5)
    assert torch.equal(a, b.flip(0)) and not torch.equal(a[0], a[1])
    assert not torch.equal(a, random_maps(["a", "b"], 4, 5, seed=1))
    coarse = random_maps(["a"], 40, 50, grid=(4, 5))
    assert (coarse[..., 1:] - coarse[..., :-1]).abs().max() < 0.11  # of the step between two cells ten pixels apart


def test_means_over_sets_and_over_samples(rng):
    values = torch.from_numpy(rng.random((50, 6)))
    sets = torch.from_numpy(rng.random((50, 6)) < 0.4)
    sets[7] = sets[30] = False
    values[7, 2] = torch.nan  # not in the set
    means = mean_over_sets(values, sets)
    rows = [[v for v, s in zip(r, t, strict=True) if s] for r, t in zip(values.tolist(), sets.tolist(), strict=True)]
    expected = [sum(row) / len(row) if row else None for row in rows]
    assert [i for i, mean in enumerate(expected) if mean is None] == torch.isnan(means).nonzero()[:, 0].tolist()
    kept = np.array([mean for mean in expected if mean is not None])
    found = summarise(means)
    assert found.excluded == 50 - len(kept) >= 2 and found.n == len(kept)
    assert found.mean.value == pytest.approx(kept.mean())
    assert found.mean == mean_interval(means[~torch.isnan(means)].numpy())
    assert found.mean.low < found.mean.value < found.mean.high


def test_no_sample_is_left():
    found = summarise(torch.full((3,), torch.nan))
    assert (found.n, found.excluded) == (0, 3) and np.isnan(found.mean.value)


def test_sets_of_another_shape():
    with pytest.raises(QScoreError, match=r"sets: expected booleans of shape \(2, 3\), got \(3, 2\)"):
        mean_over_sets(torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool))
