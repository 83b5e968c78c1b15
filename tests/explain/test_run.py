import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference.networks import build, encode
from reference.planted import PALETTE, SIDE, colour_encoder
from torch import nn

import qscore
from qscore import QScoreError
from qscore.explain import run
from qscore.explain.localisation import CONTROLS, METRICS, SETS
from qscore.tables import read_record

FAST = {"device": "cpu", "resamples": 5, "n_random": 2}


@pytest.fixture
def pictures(monkeypatch):
    """Calls of what draws, which is tested elsewhere."""
    calls = []

    def stand_in(*arguments, **options):
        calls.append((arguments, options))
        return {"sentences": ["Drawn."]}

    monkeypatch.setattr(run, "draw_pictures", stand_in)
    return calls


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A random network on drawn shapes: D found on others than are explained."""
    folder, encoder = tmp_path_factory.mktemp("shapes"), build("small:convnet-8", 32)
    images = "shapes:n=120,spurious=0,size=32,split=test"
    qscore.embed("shapes:n=150,size=32", encoder, folder / "train", device="cpu", workers=0)
    qscore.embed(images, encoder, folder / "embeddings", device="cpu", workers=0)
    qscore.score(folder / "train", folder / "train.parquet", epsilon=1.0)
    features = folder / "train.features.parquet"
    qscore.score(folder / "embeddings", folder / "scores.parquet", features=features)
    return folder, encoder, images


def explain(colours, out, **options):
    folder, encoder = colours
    settings = FAST | {"masks": folder / "masks"} | options
    return qscore.explain_scores(folder / "images", encoder, folder / "run" / "scores.parquet", out, **settings)


def test_tables_and_numbers_of_a_folder_with_masks(colours, evaluation, pictures, tmp_path):
    found = explain(colours, tmp_path / "out", evaluation=evaluation)
    rows = pq.read_table(tmp_path / "out" / "explanations.parquet")
    assert read_record(rows.schema)["kind"] == "explanations" and rows.num_rows == found["n"] == 60
    sets = (*SETS, *CONTROLS)
    columns = [f"{k}_{m}_{s}" for k in ("object", "background") for m in METRICS for s in sets]
    assert rows.column_names == ["id", "q_score", "n_active", "n_discriminative", "correct", *columns]
    empty = np.array(rows.column("n_discriminative").to_pylist()) == 0
    assert rows.column("object_iou_discriminative").is_null().to_pylist() == empty.tolist() and empty.any()
    assert found["kinds"] == ("object", "background") and found["masks"] == str(colours[0] / "masks")
    values = {(of["kind"], of["metric"], of["set"]): of for of in found["localisation"]}
    of = values["object", "iou", "discriminative"]
    assert (of["value"], of["n"], of["excluded"]) == (pytest.approx(1), (~empty).sum(), empty.sum())
    means = rows.column("object_iou_random_map").to_numpy()
    assert values["object", "iou", "random_map"]["value"] == pytest.approx(means.mean(), abs=1e-6)
    assert found["claims"]["verdicts"] == {"C3": "cannot be tested", "C4": "cannot be tested", "C9": "cannot be tested"}
    assert found["attributes"] is found["scatter"] is None and found["pictures"] == {"sentences": ["Drawn."]}
    stored = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert (
        stored["localisation"] == found["localisation"] and stored["claims"]["verdicts"] == found["claims"]["verdicts"]
    )
    assert any("were excluded" in sentence for sentence in found["sentences"])


def test_the_table_of_features(colours, pictures, tmp_path):
    explain(colours, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "localisation.parquet").to_pydict()
    scored = pq.read_table(colours[0] / "run" / "scores.parquet", columns=["active"]).column("active").to_pylist()
    counts = [sum(j in active for active in scored) for j in range(len(PALETTE))]
    assert table["feature"] == list(range(len(PALETTE)))
    assert table["n_images_object"] == table["n_images_background"] == table["count"] == counts
    assert [value is None for value in table["object_iou"]] == [n == 0 for n in counts]
    assert all(table["object_energy"][j] == pytest.approx(1) for j in range(10))
    assert "mi_gap" not in table


def test_pictures_get_the_rows_of_the_images(colours, evaluation, pictures, tmp_path):
    explain(colours, tmp_path / "out", evaluation=evaluation, masks=None, method="gradcam", layer="colours", seed=3)
    [((images, encoder, rows, features, out), options)] = pictures
    assert [images.record(i).id for i in range(60)] == rows.column("id").to_pylist()
    assert encoder is colours[1] and out == tmp_path / "out" and features.num_rows == encoder.dim
    assert {"correct", "predicted", "active", "deviation"} <= set(rows.column_names)
    assert options == {
        "embeddings": colours[0] / "run" / "embeddings",  # beside the score table
        "method": "gradcam",
        "layer": "colours",
        "batch_size": 64,
        "seed": 3,
    }


def test_without_masks_there_are_pictures(colours, pictures, tmp_path):
    explain(colours, tmp_path / "out")
    found = explain(colours, tmp_path / "out", masks=None, overwrite=True)
    assert (found["kinds"], found["n_measured"], found["localisation"], found["claims"]["records"]) == (None, 0, [], [])
    assert "no masks were given" in found["claims"]["sentences"][-1] and len(pictures) == 2
    # The table of features was that of the run with masks.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["explain.json", "explanations.parquet"]
    assert "object_iou_discriminative" not in pq.read_table(tmp_path / "out" / "explanations.parquet").column_names


def test_a_part_of_the_images_is_measured(colours, pictures, tmp_path):
    found = explain(colours, tmp_path / "out", rows=20)
    rows = pq.read_table(tmp_path / "out" / "explanations.parquet")
    assert rows.column("object_iou_gaussian").null_count == 40 and rows.num_rows == 60
    assert {of["n"] + of["excluded"] for of in found["localisation"]} == {20} == {found["n_measured"]}


def test_drawn_shapes(shapes, pictures, tmp_path):
    folder, encoder, images = shapes
    found = qscore.explain_scores(images, encoder, folder / "scores.parquet", tmp_path / "out", masks="shapes", **FAST)
    assert found["kinds"] == ("core", "spurious")
    assert list(found["claims"]["verdicts"]) == ["C3", "C4", "C9"]
    numbers = {(of["quantity"], of["statistic"]): of for of in found["claims"]["records"]}
    assert numbers["gap_discriminative", "mean"]["n"] > 0
    points = found["scatter"]["points"]
    table = pq.read_table(tmp_path / "out" / "localisation.parquet").to_pydict()
    for j, looks in zip(points["feature"], points["looks"], strict=True):
        assert (
            looks == pytest.approx(table["core_iou"][j] - table["spurious_iou"][j]) and table["n_images_core"][j] >= 10
        )
    j = points["feature"][0]
    background = max(table["mi_background"][j], table["mi_background_colour"][j])
    of_object = max(table[f"mi_{name}"][j] for name in ("shape", "colour", "texture", "size", "position"))
    assert points["carries"][0] == pytest.approx(of_object - background)
    assert found["attributes"]["n_features"] == sum(name is not None for name in table["attribute"])
    in_d = [name for name, of_d in zip(table["attribute"], table["discriminative"], strict=True) if of_d and name]
    assert sum(found["attributes"]["best"]["discriminative"].values()) == len(in_d)


def test_other_shapes_of_the_same_ids_are_refused(shapes, pictures, tmp_path):
    folder, encoder, images = shapes
    scores, options = folder / "scores.parquet", FAST | {"masks": "shapes", "rows": 5}
    for other in (images.replace("spurious=0", "spurious=0.9"), images + ",classes=5"):
        with pytest.raises(QScoreError) as caught:
            qscore.explain_scores(other, encoder, scores, tmp_path / "out", **options)
        said = str(caught.value).replace(str(folder), "...")
        assert said.startswith(f"{other}: expected the drawn shapes that .../scores.parquet is of, got others under")
    fewer = images.replace("n=120", "n=60")
    assert qscore.explain_scores(fewer, encoder, scores, tmp_path / "first", **options)["n"] == 60
    options |= {"rows": None, "before": tmp_path / "first"}
    assert qscore.explain_scores(images, encoder, scores, tmp_path / "o", **options)["before"]["n"] == 5
    earlier_with(tmp_path / "first", images=fewer + ",classes=5")
    with pytest.raises(QScoreError, match=r"first: its images: shapes:.*,classes=5; now shapes:.*; both must be the s"):
        qscore.explain_scores(images, encoder, scores, tmp_path / "p", **options)


def test_d_of_the_same_images_is_said_to_be(shapes, pictures, tmp_path):
    folder, encoder, _ = shapes
    options = {"masks": None, "evaluation": None}
    images = "shapes:n=150,size=32"
    found = qscore.explain_scores(images, encoder, folder / "train.parquet", tmp_path / "out", **FAST, **options)
    assert found["claims"]["verdicts"]["C3"] == "cannot be tested"
    assert "shape and background go together" in found["claims"]["sentences"][0]
    assert found["claims"]["reasons"]["C3"].startswith("shape and background go together")


def test_before_and_after(colours, pictures, tmp_path):
    first = explain(colours, tmp_path / "first", rows=30)
    found = explain(colours, tmp_path / "second", before=tmp_path / "first", resamples=20)
    assert found["before"]["n"] == 30 and found["claims"]["verdicts"]["C10"] == "cannot be tested"
    changes = [of for of in found["claims"]["records"] if of["statistic"].startswith("change")]
    known = [of["value"] for of in changes if not np.isnan(of["value"])]
    assert len(known) > 5 and np.allclose(known, 0, atol=1e-6)
    assert "C10" not in first["claims"]["verdicts"]


def test_the_same_command_gives_the_same_files(colours, pictures, tmp_path):
    for name in ("a", "b"):
        explain(colours, tmp_path / name, rows=10)
    for name in ("explain.json", "explanations.parquet", "localisation.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_with_pictures(colours, tmp_path):
    found = explain(colours, tmp_path / "out", rows=2)
    assert found["pictures"] and list((tmp_path / "out").rglob("*.png"))
    assert json.loads((tmp_path / "out" / "explain.json").read_text())["pictures"]


def refusal(colours, out, **options):
    with pytest.raises(QScoreError) as caught:
        explain(colours, out, **options)
    return str(caught.value).replace(str(out.parent), "...").replace(str(colours[0]), "...")


def test_results_are_not_overwritten_unasked(colours, pictures, tmp_path):
    explain(colours, tmp_path / "out")
    assert refusal(colours, tmp_path / "out").startswith(".../out/explain.json exists; choose another name")
    (tmp_path / "file").touch()
    assert refusal(colours, tmp_path / "file") == ".../file is a file; name a directory"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "gradcm"},
            "method: expected one of activation, gradcam, gradient, integrated_gradients, got 'gradcm'",
        ),
        (
            {"rows": 1},
            "expected n_random >= 1, resamples >= 1, seed >= 0, batch_size >= 1 and rows >= 2, got 2, 5, 0, 64",
        ),
        ({"layer": "nothing"}, "layer 'nothing': the network has no such layer; layers with positions are colours"),
        ({"before": "..."}, "...: expected an earlier explanation, with explain.json"),
        ({"embeddings": "digits.npy"}, "digits.npy: no such file or folder"),
    ],
)
def test_bad_settings(options, message, colours, pictures, tmp_path):
    assert refusal(colours, tmp_path / "out", **options).startswith(message)
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_another_width(colours, pictures, tmp_path):
    folder, _ = colours
    with pytest.raises(QScoreError) as caught:
        explain((folder, build("small:convnet-4", 32)), tmp_path / "out")
    assert str(caught.value).replace(str(folder), "...") == (
        ".../run/scores.parquet has 20 features, and the encoder 32; both must come from the same encoder"
    )


def test_an_encoder_without_positions(colours, pictures, tmp_path):
    folder, _ = colours

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.flatten, self.linear = nn.Flatten(), nn.Linear(3 * SIDE**2, 20)

        def forward(self, x):
            return self.linear(self.flatten(x)).relu()

    with pytest.raises(QScoreError) as caught:
        explain((folder, encode(Table(), SIDE)), tmp_path / "out", method="gradcam")
    assert "test" in str(caught.value)


def test_embeddings_of_another_width(colours, pictures, tmp_path):
    np.save(tmp_path / "other.npy", np.ones((3, 7), np.float32))
    said = refusal(colours, tmp_path / "out", embeddings=tmp_path / "other.npy")
    assert said == ".../other.npy has 7 features, and .../run/scores.parquet 20; both must come from the same encoder"


def earlier_with(folder, **changes):
    settings = json.loads((folder / "explain.json").read_text()) | changes
    (folder / "explain.json").write_text(json.dumps(settings))


def test_explanations_that_cannot_be_compared(colours, pictures, tmp_path):
    first = tmp_path / "first"
    explain(colours, first, rows=10)
    out = tmp_path / "out"
    said = refusal(colours, first, before=first, overwrite=True)
    assert said == ".../first: the earlier explanation would be overwritten; choose another directory for this one"
    said = refusal(colours, out, before=first, masks=None)
    assert said == ".../first: expected masks, to compare with an earlier explanation; got none"
    said = refusal(colours, out, before=first, method="gradcam")
    assert said == ".../first: its method: activation; now gradcam; both must be the same"
    earlier_with(first, kinds=["core", "spurious"])
    said = refusal(colours, out, before=first)
    assert said == ".../first: its kinds of masks: core and spurious; now object and background; both must be the same"
    earlier_with(first, kinds=["object", "background"])
    table = pq.read_table(first / "explanations.parquet")
    other = table.set_column(0, "id", [[f"x{i}" for i in range(60)]])
    pq.write_table(other, first / "explanations.parquet")
    said = refusal(colours, out, before=first)
    assert said == ".../first: none of its 10 measured images is among these; rows are matched by id"
    (first / "explain.json").write_text("{")
    assert refusal(colours, out, before=first).startswith(".../first: cannot read this explanation: ")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop_columns(["id"]), "explanations.parquet has no column 'id'; run qscore explain again"),
        (lambda t: t.drop_columns(["q_score"]), "explanations.parquet has no column 'q_score'; run qscore"),
        (lambda t: t.drop_columns(["object_iou_random_map"]), "has no column 'object_iou_random_map'; run"),
        (lambda t: t.drop_columns(["background_iou_outside"]), "has no column 'background_iou_outside'; run"),
        (lambda t: t.set_column(1, "q_score", [["much"] * 60]), "explanations.parquet: Failed to parse string: 'much'"),
        (lambda t: pa.concat_tables([t, t]), "explanations.parquet holds an id more than once"),
    ],
)
def test_an_earlier_explanation_that_is_damaged(spoil, message, colours, pictures, tmp_path):
    first = tmp_path / "first"
    explain(colours, first, rows=10)
    pq.write_table(spoil(pq.read_table(first / "explanations.parquet")), first / "explanations.parquet")
    said = refusal(colours, tmp_path / "out", before=first)
    assert said.startswith(".../first: cannot read this explanation: ") and message in said
    (first / "explanations.parquet").unlink()
    assert refusal(colours, tmp_path / "out", before=first).endswith("earlier explanation, with explanations.parquet")


def test_other_rows_than_before_are_refused_before_any_work(colours, pictures, monkeypatch, tmp_path):
    first = tmp_path / "first"
    explain(colours, first, rows=2)
    monkeypatch.setattr(run, "locate", lambda *_, **__: pytest.fail("measured"))
    said = refusal(colours, tmp_path / "out", before=first, rows=2, seed=1)
    assert said == ".../first: none of its 2 measured images is among these; rows are matched by id"


@pytest.mark.parametrize("masks", [None, "masks"])
def test_another_encoder_is_refused_with_masks_and_without(masks, colours, pictures, tmp_path):
    folder, other = colours[0], colour_encoder()
    other.backbone.colours.palette = other.backbone.colours.palette.flip(0)
    with pytest.raises(QScoreError, match="first 60 images are, so it was made with another encoder, or other prep"):
        explain((folder, other), tmp_path / "out", masks=masks and folder / masks)
    assert not pictures and not (tmp_path / "out").exists()


def test_results_survive_what_is_refused(colours, tmp_path):
    explain(colours, tmp_path / "out", masks=None)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert "the network has no such layer" in refusal(colours, tmp_path / "out", masks=None, layer="x", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


@pytest.fixture
def partly_embedded(colours, tmp_path):
    """The scores, and beside them embeddings of 40 of the 60 images."""
    folder, encoder = colours
    part, run = tmp_path / "part", tmp_path / "run"
    part.mkdir()
    for path in sorted((folder / "images").iterdir())[:40]:
        shutil.copy(path, part)
    shutil.copytree(folder / "run", run, ignore=shutil.ignore_patterns("embeddings"))
    qscore.embed(part, encoder, run / "embeddings", device="cpu", workers=0)
    return run


def test_embeddings_of_other_rows_are_not_taken_unasked(partly_embedded, colours, pictures, tmp_path):
    folder, encoder = colours
    found = qscore.explain_scores(
        folder / "images", encoder, partly_embedded / "scores.parquet", tmp_path / "o", **FAST
    )
    [said] = [said for said in found["sentences"] if "embeddings" in said]
    assert said.startswith("The embeddings beside the score table are not used: ") and "20 of 60 scored rows" in said
    assert pictures[0][1]["embeddings"] is None


def test_embeddings_of_other_rows_are_refused_before_any_work(partly_embedded, colours, pictures, tmp_path):
    said = refusal(colours, tmp_path / "out", embeddings=partly_embedded / "embeddings")
    assert "20 of 60 scored rows are not in this table" in said
    assert not pictures and not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_stops_while_it_draws_starts_again(overwrite, colours, monkeypatch, tmp_path):
    def stop(*_, **__):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "lowest.png").touch()
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(run, "draw_pictures", lambda *_, **__: {"sentences": []})
        explain(colours, out) if overwrite else None
        patch.setattr(run, "draw_pictures", stop)
        with pytest.raises(KeyboardInterrupt):
            explain(colours, out, overwrite=overwrite)
        assert [path.name for path in out.iterdir()] == ["lowest.png"]  # no results of two runs
        patch.setattr(run, "draw_pictures", lambda *_, **__: {"sentences": []})
        assert explain(colours, out)["n"] == 60  # unasked: nothing that was finished is lost


def test_blind_maps_are_said_of_the_same_images(colours, pictures, tmp_path):
    found = explain(colours, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "explanations.parquet").to_pandas()
    there = rows[rows.n_discriminative > 0]
    [said] = [said for said in found["sentences"] if "meet the object" in said]
    centred, random = (there[f"object_iou_{name}"].mean() for name in CONTROLS)
    assert f"there a centred map with {centred:.3f}, a random one with {random:.3f}; {60 - len(there)} images" in said
    assert f"{rows.object_iou_gaussian.mean():.3f}" != f"{centred:.3f}"


def test_a_mask_of_another_size(colours, pictures, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(colours[0], folder)
    (folder / "masks" / "007.png").write_bytes((folder / "images" / "007.png").read_bytes())
    said = refusal((folder, colours[1]), tmp_path / "out")
    assert "007.png: expected a mask in grey, got one in colours" in said


def test_training_mode_does_not_matter(colours, pictures, tmp_path):
    encoder = colour_encoder().train()
    found = explain((colours[0], encoder), tmp_path / "out")
    assert encoder.training and found["n_measured"] == 60
