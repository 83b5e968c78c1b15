import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from reference import masks as oracle
from reference.networks import build, encode, photos
from torch import nn

from qscore import QScoreError
from qscore.explain import feature_heatmaps, gaussian_map, localisation, random_maps
from qscore.explain.localisation import CONTROLS, METRICS, SETS, feature_sets, locate, on_device
from qscore.explain.material import gather, read_lists

CPU = torch.device("cpu")


@pytest.fixture
def found(colours):
    folder, _ = colours
    return gather(folder / "images", folder / "run" / "scores.parquet", masks=folder / "masks")


def naive(heat, mask):
    """All metrics of a heatmap and a mask, by the definitions; what ties at the mask's area counts by its share."""
    area = int(mask.sum())
    least = np.sort(heat.ravel())[-area]
    above, tied = heat > least, heat == least
    inside = (above & mask).sum() + (area - above.sum()) * (tied & mask).sum() / tied.sum()
    peaks = np.argwhere(heat == heat.max())
    return {
        "iou": inside / (2 * area - inside) if heat.max() > 0 else 0.0,
        "soft_iou": oracle.soft_iou(heat, mask),
        "pointing": float(np.mean([mask[tuple(p)] for p in peaks])) if heat.max() > 0 else 0.0,
        "energy": heat[mask].sum() / heat.sum() if heat.max() > 0 else 0.0,
        "iou_half": oracle.threshold_iou(heat, mask, 0.5),
    }


def test_a_feature_of_the_objects_colour_looks_at_the_object(colours, found):
    """Each image has one object: its feature's map is 1 on it and 0 elsewhere."""
    _, encoder = colours
    sets = feature_sets(found.features, 3, seed=0)
    located = locate(found, encoder, found.masked, sets, device=CPU)
    D = np.flatnonzero(sets["discriminative"])
    assert (D < 10).all() and len(D) == 9
    assert located.features["object_iou"][D] == pytest.approx(np.ones(9))
    assert located.features["background_energy"][D] == pytest.approx(np.zeros(9))
    seen = ~np.isnan(located.samples["object_iou_discriminative"])
    np.testing.assert_array_equal(seen, found.rows.column("n_discriminative").to_numpy() > 0)
    assert located.samples["object_pointing_discriminative"][seen].min() == 1


class Cells(nn.Module):
    """Map j is the image in cells of 8 x 8 pixels, times weights of its own; exact whatever the size of the batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.randint(0, 9, (12, 4, 4), generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        cells = nn.functional.avg_pool2d(x.sum(1, keepdim=True), 8)
        return cells * self.weights


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = Cells()

    def forward(self, x):
        return self.cells(x).mean((2, 3))


def test_samples_and_features_by_naive_loops(monkeypatch):
    """Random maps on noise, with masks and sets of features drawn at random."""
    encoder, x = encode(Mean(), 32), photos(5, 32, 32).mul(4).round()
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random((5, 32, 32)) < 0.3)
    lists = [
        np.array([1, 4, 7], np.int32),
        np.array([], np.int32),
        np.array([0, 1, 5]),
        np.array([2, 3]),
        np.array([1]),
    ]
    kinds = [("core", "spurious")] * 4 + [("core",)]
    sets = {name: rng.random(encoder.dim) < 0.5 for name in ("discriminative", "random 0", "random 1", "frequent")}
    sets["outside"] = ~sets["discriminative"]
    rows = pa.table({"id": list("abcde"), "active": pa.array([of.tolist() for of in lists], pa.list_(pa.int32()))})

    class Masks:
        kinds = ("core", "spurious")

        def prepare(self, position, _):
            both = {"core": mask[position].float(), "spurious": 1 - mask[position].float()}
            return x[position], {kind: both[kind] for kind in kinds[position]}

    @dataclasses.dataclass
    class Stand:
        masks = Masks()
        of_source = np.arange(5)

    stand = Stand()
    stand.rows = rows
    monkeypatch.setattr(localisation, "_check_encoder", lambda *_: None)
    found = locate(stand, encoder, np.arange(5), sets, device=CPU, batch_size=2, seed=7)
    sums = {}
    for i, (features, of) in enumerate(zip(lists, kinds, strict=True)):
        heat = feature_heatmaps(encoder, x[i : i + 1], features)[0].double().numpy()
        for kind in ("core", "spurious"):
            if kind not in of:
                assert all(np.isnan(found.samples[f"{kind}_{m}_{s}"][i]) for m in METRICS for s in (*SETS, *CONTROLS))
                continue
            here = (mask[i] if kind == "core" else ~mask[i]).numpy()
            values = {j: naive(one, here) for j, one in zip(features.tolist(), heat, strict=True)}
            for j, all_metrics in values.items():
                for metric, value in all_metrics.items():
                    sums.setdefault((kind, metric, j), []).append(value)
            blind = {
                "gaussian": gaussian_map(32, 32).double().numpy(),
                "random_map": random_maps(["abcde"[i]], 32, 32, grid=(4, 4), seed=7)[0, 0].double().numpy(),
            }
            for metric in METRICS:
                for name in ("discriminative", "outside", "frequent"):
                    some = [values[j][metric] for j in values if sets[name][j]]
                    expected = np.mean(some) if some else np.nan
                    assert found.samples[f"{kind}_{metric}_{name}"][i] == pytest.approx(expected, abs=1e-5, nan_ok=True)
                draws = [[values[j][metric] for j in values if sets[f"random {k}"][j]] for k in range(2)]
                draws = [np.mean(some) for some in draws if some]
                expected = np.mean(draws) if draws else np.nan
                assert found.samples[f"{kind}_{metric}_random"][i] == pytest.approx(expected, abs=1e-5, nan_ok=True)
                got = found.samples[f"{kind}_{metric}_random_map"][i]
                assert got == pytest.approx(naive(blind["random_map"], here)[metric], abs=1e-5)
            gaussian = found.samples[f"{kind}_energy_gaussian"][i]
            assert gaussian == pytest.approx(naive(blind["gaussian"], here)["energy"], abs=1e-5)
    for kind in ("core", "spurious"):
        for j in range(encoder.dim):
            expected = sums.get((kind, "iou", j), [])
            assert found.n_images[kind][j] == len(expected)
            mean = np.mean(expected) if expected else np.nan
            assert found.features[f"{kind}_iou"][j] == pytest.approx(mean, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("method", ["gradcam", "gradient"])
def test_features_that_take_a_pass_each_come_in_parts(method, monkeypatch, colours, found):
    _, encoder = colours
    chosen, sets = found.masked[:5], feature_sets(found.features, 2, seed=0)
    whole = locate(found, encoder, chosen, sets, device=CPU, method=method)
    monkeypatch.setattr(localisation, "TOGETHER", 2)
    monkeypatch.setattr(localisation, "ENLARGED", 1)
    parts = locate(found, encoder, chosen, sets, device=CPU, method=method, batch_size=2)
    for name, values in whole.samples.items():
        np.testing.assert_allclose(parts.samples[name], values, atol=1e-6)


def test_images_that_are_not_chosen_have_no_values(colours, found):
    _, encoder = colours
    located = locate(found, encoder, np.array([3, 8]), feature_sets(found.features, 1, seed=0), device=CPU)
    measured = ~np.isnan(located.samples["object_iou_random_map"])
    assert np.flatnonzero(measured).tolist() == [3, 8]


def test_an_encoder_of_other_scores_is_refused(colours, found):
    _, encoder = colours
    rows = found.rows.set_column(
        found.rows.schema.get_field_index("active"),
        "active",
        pa.array([[11 if j == 0 else j - 1 for j in of] for of in found.rows.column("active").to_pylist()]),
    )
    other = dataclasses.replace(found, rows=rows)
    with pytest.raises(QScoreError) as caught:
        locate(other, encoder, found.masked, feature_sets(found.features, 1, seed=0), device=CPU)
    assert str(caught.value) == (
        "colours: only 1% of the features that the score table calls highly active in the first 60 images are, so it "
        "was made with another encoder, or other preprocessing"
    )


def test_sets_of_features():
    counts = np.array([0, 5, 3, 9, 0, 4, 8])
    table = pa.table({"count": counts, "discriminative": [False, True, False, False, False, True, False]})
    sets = feature_sets(table, 50, seed=1)
    assert np.flatnonzero(sets["frequent"]).tolist() == [3, 6]
    assert np.flatnonzero(sets["outside"]).tolist() == [0, 2, 3, 4, 6]
    random = [np.flatnonzero(members).tolist() for name, members in sets.items() if name.startswith("random")]
    assert len(random) == 50 and all(len(of) == 2 and (counts[of] > 0).all() for of in random)
    assert len({tuple(of) for of in random}) == 10


def test_the_encoder_is_moved_back():
    encoder = build("small:convnet-4", 32).double()
    with pytest.raises(KeyError), on_device(encoder, CPU):
        raise KeyError
    assert next(encoder.parameters()).device == CPU


def test_lists_of_rows_cut_out_of_a_table():
    rows = pa.table({"active": pa.array([[5], [1, 2], [], [7]])}).slice(1, 3)
    indptr, active = read_lists(rows)
    assert indptr.tolist() == [0, 2, 2, 3] and active.tolist() == [1, 2, 7]
