import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import qscore
from qscore.cli.app import app
from qscore.encoders import Preprocessing, build_backbone, save_encoder
from qscore.explain import run as explaining

BACKBONE = "small:convnet-4"


@pytest.fixture(autouse=True)
def leave_logging_alone(monkeypatch):
    monkeypatch.setattr("qscore.cli.verb._send_to_standard_error", lambda _: None)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(explaining, "draw_pictures", lambda *_, **__: {"sentences": ["Drawn."]})


def save(folder, crop):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_backbone(BACKBONE).state_dict()
    save_encoder(folder, BACKBONE, weights, Preprocessing(crop=crop, resize=crop), method="simclr")


def png(path, array, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)


def disc():
    y, x = np.mgrid[:40, :40]
    return np.where((y - 18) ** 2 + (x - 22) ** 2 < 100, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Eight images, their masks, an encoder, and their scores."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for k in range(8):
        png(folder / "images" / f"{k}.png", rng.integers(0, 255, (40, 40, 3), np.uint8), "RGB")
        png(folder / "masks" / f"{k}.png", disc())
    save(folder / "encoder", 32)
    save(folder / "dot", 8)
    encoder = qscore.load_encoder(folder / "encoder")
    qscore.embed(folder / "images", encoder, folder / "run" / "embeddings", device="cpu", workers=0)
    qscore.score(folder / "run" / "embeddings", folder / "run" / "scores.parquet", epsilon=1.5)
    return folder


@pytest.fixture
def files(made, tmp_path):
    shutil.copytree(made, tmp_path / "files")
    return tmp_path / "files"


def explain(files, *arguments, masks="masks", images="images", encoder="encoder", scores="run/scores.parquet"):
    options = ["--encoder", files / encoder, "--scores", files / scores, "--out", files / "out", "--device", "cpu"]
    options += ["--masks", masks if masks == "shapes" else files / masks] if masks else []
    source = images if images == "digits" else files / images
    return CliRunner().invoke(app, ["explain", *map(str, [source, *options, "--resamples", 5, *arguments])])


def refusal(done, files):
    assert done.exit_code == 1 and done.stdout == "", done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ").replace(str(files), "...")


def test_help_has_an_example():
    text = " ".join(CliRunner().invoke(app, ["explain", "--help"]).stdout.split())
    assert "qscore explain photos/ --encoder encoder --scores run/scores.parquet" in text.split("Example:")[1]


def test_it_prints_tables_and_verdicts(files, undrawn):
    done = explain(files)
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "How heatmaps meet the object, means over",
        "How heatmaps meet the background, means over",
        "active features outside D",
        "centred map",
        "object D - object outside",
        "C9 (discriminative features correlate with core attributes) cannot be tested",
        "Drawn.",
        "out/explain.json",
    ):
        assert words in text
    again = explain(files, "--json", "--overwrite")
    assert json.loads(again.stdout) == json.loads((files / "out" / "explain.json").read_text())


def test_without_masks_it_draws(files):
    done = explain(files, masks=None)
    assert done.exit_code == 0, done.stderr
    assert "no masks were given" in " ".join(done.stdout.split())
    assert list((files / "out").rglob("*.png"))


def grey(path, value):
    png(path, np.full((40, 40), value, np.uint8))


def coloured(path):
    png(path, np.stack([disc(), disc() // 2, disc()], -1), "RGB")


def transparent(path):
    png(path, np.stack([disc(), disc(), disc(), disc()], -1), "RGBA")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: png(f / "masks/9.png", disc()), "1 mask has no image in .../images, the first is '.../masks/9.png'"),
        (lambda f: (f / "masks/3.png").unlink(), "1 of 8 images have no mask in .../masks, the first is '3.png'"),
        (
            lambda f: png(f / "masks/3.png", disc()[:30]),
            "expected a mask of the image's size, 40 x 40 pixels, got 40 x 30",
        ),
        (lambda f: grey(f / "masks/3.png", 0), "expected a mask that marks something, got an empty one"),
        (lambda f: grey(f / "masks/3.png", 255), "expected a mask that leaves something out, got one that marks every"),
        (lambda f: coloured(f / "masks/3.png"), "expected a mask in grey, got one in colours (mode RGB)"),
        (
            lambda f: transparent(f / "masks/3.png"),
            "expected a mask in grey, got one with transparent pixels (mode RGBA)",
        ),
        (lambda f: (f / "run/scores.parquet").unlink(), ".../run/scores.parquet: no such file"),
        (lambda f: (f / "run/scores.features.parquet").unlink(), ".../run/scores.features.parquet: no such file"),
        (
            lambda f: shutil.rmtree(f / "encoder"),
            "encoder '.../encoder': expected torchvision:NAME, timm:NAME, hf:NAME",
        ),
        (
            lambda f: shutil.rmtree(f / "masks"),
            "masks '.../masks': expected a folder of masks, an .npz archive, the folder",
        ),
        (lambda f: shutil.rmtree(f / "images"), "images '.../images': expected"),
    ],
)
def test_bad_input_is_one_line(spoil, message, files, undrawn):
    spoil(files)
    assert message in refusal(explain(files), files)
    assert not (files / "out" / "explain.json").exists()


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            {"images": "digits", "masks": None},
            (),
            "digits: none of its 1,797 images has a row in .../run/scores.parquet",
        ),
        (
            {"masks": "shapes"},
            (),
            "shapes: none of the 8 images in .../images has a mask here; the first image is '0.png'",
        ),
        ({}, ("--evaluation", "none.parquet"), "none.parquet: no such file"),
        ({}, ("--embeddings", "none.npy"), "none.npy: no such file or folder"),
        ({}, ("--before", "none"), "none: expected an earlier explanation, with explain.json"),
        (
            {},
            ("--method", "cam"),
            "method: expected one of activation, gradcam, gradient, integrated_gradients, got 'cam'",
        ),
        ({}, ("--layer", "head"), "layer 'head': the network has no such layer; layers with positions are"),
        ({"encoder": "dot"}, (), "made with another encoder, or other preprocessing"),
        ({"encoder": "dot", "masks": None}, (), "made with another encoder, or other preprocessing"),
    ],
)
def test_bad_options_are_one_line(options, arguments, message, files):
    assert message in refusal(explain(files, *arguments, **options), files)


@pytest.mark.parametrize("method", ["activation", "gradcam"])
@pytest.mark.parametrize("masks", [None, "masks"])
def test_an_encoder_without_positions_names_its_layers(masks, method, files):
    name = "vit:16x1-h2-m16-p32-s32"  # one patch
    save_encoder(
        files / "flat", name, build_backbone(name).state_dict(), Preprocessing(crop=32, resize=32), method="dino"
    )
    encoder = qscore.load_encoder(files / "flat")
    qscore.embed(files / "images", encoder, files / "flats" / "embeddings", device="cpu", workers=0)
    qscore.score(files / "flats" / "embeddings", files / "flats" / "scores.parquet", epsilon=1.5)
    done = explain(files, "--method", method, masks=masks, encoder="flat", scores="flats/scores.parquet")
    said = "has no layer with several positions for images of 32 x 32 pixels; its layers are patch_embed, pos_drop,"
    assert said in refusal(done, files) and not (files / "out").exists()


def test_features_out_of_range(files, undrawn):
    """A score table that names features the encoder has not: another table's."""
    table = pq.read_table(files / "run" / "scores.parquet")
    active = pa.array([[0, 99]] * 8, pa.list_(pa.int32()))
    table = table.set_column(table.column_names.index("active"), "active", active)
    pq.write_table(table, files / "run" / "scores.parquet")
    assert "feature 99 is highly active in some row, and the feature table has 32 features, from 0 on" in refusal(
        explain(files), files
    )


WNID = "n01440764"
HEADER = "WorkerId,Input.wordnet_id,Input.class_index,Input.feature_index,Answer.main"


@pytest.fixture
def salient(files):
    """The images under names of ImageNet, and a folder of Salient ImageNet with masks of the first two."""
    shutil.rmtree(files / "run")
    for path in sorted((files / "images").iterdir()):
        path.rename(path.with_name(f"{WNID}_{path.name}"))
    root = files / "salient"
    for k in (0, 1):
        png(root / WNID / "feature_7" / f"{WNID}_{k}.JPEG", disc())
    (root / WNID / "image_names_map.csv").write_text(f"7\n{WNID}_0\n{WNID}_1\n")
    (root / "wordnet_dict.py").write_text(repr({0: WNID}))
    answers = "\n".join(f"{k},{WNID},0,7,main_object" for k in range(5))
    (root / "discover_spurious_features.csv").write_text(f"{HEADER}\n{answers}\n")
    encoder = qscore.load_encoder(files / "encoder")
    qscore.embed(files / "images", encoder, files / "run" / "embeddings", device="cpu", workers=0)
    qscore.score(files / "run" / "embeddings", files / "run" / "scores.parquet", epsilon=1.5)
    return files


def test_salient_imagenet_measures_the_images_that_have_masks(salient, undrawn):
    done = explain(salient, "--json", masks="salient")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n"], found["n_measured"], found["kinds"]) == (8, 2, ["core", "spurious"])
    values = {(of["kind"], of["set"]): of["n"] for of in found["localisation"] if of["metric"] == "iou"}
    assert values["core", "gaussian"] == 2 and values["spurious", "gaussian"] == 0  # no feature is spurious
    assert found["claims"]["verdicts"]["C4"] == "cannot be tested"
    core, spurious = found["sentences"][1:3]
    assert core.startswith("In 2 images the highly active features of D meet the core with")
    assert spurious.startswith("None of 2 images has a highly active feature of D and a mask of the spurious: nothing")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("wordnet_dict.py", "{0: __import__('os').getcwd()}", "wordnet_dict.py: "),
        ("wordnet_dict.py", repr({0: "n02206856"}), "unknown WordNet id 'n01440764'"),
        ("discover_spurious_features.csv", "WorkerId,Answer\n1,2\n", "discover_spurious_features.csv: "),
        ("discover_spurious_features.csv", f"{HEADER}\n1,{WNID},0,7,main_object\n", "discover_spurious_features.csv: "),
    ],
)
def test_salient_imagenet_that_is_malformed(name, text, message, salient, undrawn):
    (salient / "salient" / name).write_text(text)
    assert message in refusal(explain(salient, masks="salient"), salient)
