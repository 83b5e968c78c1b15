"""Whole reproductions in miniature: minutes, so not in CI."""

import json

import pytest
from PIL import Image
from tiny_training import crash

from qscore.images import open_images
from qscore.study.reproduce import export_run, reproduce
from qscore.study.reproduce.context import WNIDS

pytestmark = pytest.mark.slow
SHAPES = {
    "shapes_train": "shapes:n=80,classes=4,size=16",
    "shapes_test": "shapes:n=40,classes=4,size=16,split=test",
    "shapes_free": "shapes:n=40,classes=4,size=16,spurious=0,split=test",
    "shapes_recipe": "small",
    "shapes_epochs": 2,
    "shapes_keep": 1,
    "shapes_tune_epochs": 1,
    "shapes_rows": 30,
}
TINY = {
    "backbone": "small:resnet10-2-r24",
    "wide_backbone": None,
    "recipe": "small",
    "resamples": 20,
    "views": 2,
    "curve_epochs": 2,
    "curve_keep": 1,
    "curve_warmup": None,
    "supervised_epochs": 1,
    "repair_seeds": 2,
    "repair_epochs": 1,
    "methods_epochs": 2,
    "methods_keep": 1,
    "methods_warmup": None,
    "methods_tune_epochs": 1,
    **SHAPES,
}


def results(folder):
    return {file.stem: json.loads(file.read_text()) for file in sorted((folder / "results").glob("*.json"))}


def test_all_stages_and_nothing_twice(tmp_path, monkeypatch):
    options = {"overrides": TINY | {"n_train": 60, "n_test": 50}, "methods": "simclr,dino,supervised"}
    options["device"] = "cpu"
    found = reproduce("digits", tmp_path, **options)
    assert found["left"] == [] and len(found["done"]) == 9
    there = results(tmp_path)
    assert set(there) == set(found["done"]) and all(result["complete"] for result in there.values())
    rates = there["small-repair-simclr-seed0"]["found"]["rates"]
    assert list(rates["paper"]["arms"]) == ["lr0", "plain", "lasso", "qscore", "random-d"]
    assert rates["paper"]["seeds"] == [0, 1] and rates["calibrated"]["learning_rate"] != 1e-5
    assert rates["paper"]["settings"]["optimizer"] == "adamw"
    assert list(there["small-methods-dino-seed0"]["found"]["tuned"]["arms"]) == ["lr0", "plain", "qscore"]
    assert set(there["small-shapes-simclr-seed0"]["found"]["explained"]) == {
        "start",
        "free",
        "from-start",
        "from-plain",
    }
    assert set(there["small-shapes-supervised-seed0"]["found"]["explained"]) == {"start", "free"}
    assert "tuned" not in there["small-shapes-supervised-seed0"]["found"]
    sources = there["small-sensitivity-simclr-seed0"]["found"]["sources"]
    assert [source["source"] for source in sources] == ["curve-simclr-24", "methods-simclr"]
    page = (tmp_path / "results.md").read_text()
    assert "not yet run" not in page[page.index("## Scale small") : page.index("## How to run it")]
    with monkeypatch.context() as patch:
        for name in ("curve.measure_encoder", "repair.compare", "methods.compare", "shapes.explain_scores"):
            patch.setattr(f"qscore.study.reproduce.{name}", crash)
        assert reproduce("digits", tmp_path, **options)["left"] == []
    assert results(tmp_path) == there


def test_methods_side_by_side_in_processes(tmp_path):
    options = {"overrides": TINY | {"n_train": 60, "n_test": 50}, "methods": "random,simclr", "device": "cpu"}
    found = reproduce("digits", tmp_path, stage="curve", processes=2, **options)
    assert found["done"] == ["small-curve-random-24-seed0", "small-curve-simclr-24-seed0"] and found["refused"] == {}
    failed = reproduce("digits", tmp_path, stage="sensitivity", processes=2, **options | {"methods": "simclr,byol"})
    assert failed["done"] == ["small-sensitivity-simclr-seed0"]
    reason = failed["refused"]["small-sensitivity-byol-seed0"]
    assert reason == "its command ended with code 1; run it alone to see why"
    assert failed["left"] == ["small-sensitivity-byol-seed0"] and not failed["out_of_time"]


def test_the_medium_scale_runs_in_a_few_steps_on_a_processor(tmp_path):
    few = {"n_train": 60, "n_test": 50, "resamples": 20, "views": 2, "batch_size": 16, "repair_seeds": 1}
    few |= {"backbone": "small:resnet18-4-r24", "wide_backbone": "small:resnet18-4-r48", "supervised_epochs": 1}
    few |= {"curve_epochs": 2, "curve_keep": 1, "curve_warmup": 1.0, "repair_epochs": 1, "methods_epochs": 2}
    few |= {"methods_keep": 1, "methods_warmup": 1.0, "methods_tune_epochs": 1, **SHAPES}
    options = {"scale": "medium", "overrides": few, "device": "cpu", "processes": 2, "minutes": 30}
    found = reproduce("digits", tmp_path, methods="simclr,supervised,random", **options)
    assert found["left"] == [] and found["refused"] == {} and not found["out_of_time"]
    there = results(tmp_path)
    assert set(there) == set(found["done"]) and "medium-curve-simclr-48-seed0" in there
    assert {result["settings"].get("precision", "bf16-mixed") for result in there.values()} == {"bf16-mixed"}
    record = json.loads((tmp_path / "encoders" / "medium" / "curve" / "simclr-48" / "pretrain.json").read_text())
    assert (record["recipe"], record["precision"]) == ("cifar", "bf16-mixed")
    files = export_run(tmp_path, tmp_path / "exported")
    assert max(file.stat().st_size for file in files) < 16 * 2**20
    page = (tmp_path / "results.md").read_text()
    assert "not yet run" not in page[page.index("## Scale medium") : page.index("## How to run it")]


def test_two_devices_train_each_encoder_in_a_command_of_its_own(tmp_path):
    options = {"overrides": TINY | {"n_train": 60, "n_test": 50}, "methods": "simclr", "device": "cpu", "devices": 2}
    found = reproduce("digits", tmp_path, stage="curve,repair,methods", **options)
    assert found["left"] == [] and len(found["done"]) == 3
    for place in ("curve/simclr-24", "methods/simclr"):
        record = json.loads((tmp_path / "encoders" / "small" / place / "pretrain.json").read_text())
        assert record["devices"] == 2


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Folders in the shape of ImageNet: a hundred classes of the list and one other, with images of shapes."""
    folder = tmp_path_factory.mktemp("imagenet")
    wnids = [*WNIDS.read_text().split(), "n01440764"]
    for split, each in (("train", 5), ("val", 2)):
        source = open_images(
            f"shapes:n={each * len(wnids)},classes=100,size=40,split={'test' if split == 'val' else split}"
        )
        for k in range(len(source)):
            place = folder / split / wnids[k % len(wnids)]
            place.mkdir(parents=True, exist_ok=True)
            image = source.image(k)
            image.resize((48, 40) if k % 2 else (40, 56), Image.Resampling.BILINEAR).save(
                place / f"{split}_{k:05d}.JPEG"
            )
    return folder


def test_the_paper_s_scale_runs_dry_on_a_miniature_imagenet_100(imagenet, tmp_path):
    tiny = TINY | {"recipe": "imagenet", "image_size": 32, "precision": "32-true", "repair_seeds": 1}
    tiny |= {"tune_batch_size": 10}
    found = reproduce(
        imagenet / "train",
        tmp_path,
        test_images=imagenet / "val",
        scale="paper",
        classes="imagenet100",
        methods="simclr,supervised",
        overrides=tiny,
        device="cpu",
        workers=1,
    )
    assert found["left"] == [] and found["refused"] == {}
    there = results(tmp_path)
    assert set(there) == set(found["done"])
    curve = there["paper-curve-simclr-24-imagenet100-seed0"]
    assert {name: of["n"] for name, of in curve["images"].items()} == {"train": 500, "test": 200}  # no tench
    assert "--classes imagenet100" in curve["command"] and str(imagenet) not in json.dumps(there)
    record = json.loads(
        (tmp_path / "encoders" / "paper" / "curve" / "simclr-24-imagenet100" / "pretrain.json").read_text()
    )
    assert (record["recipe"], record["config"]["temperature"], record["image_size"]) == ("imagenet", 0.1, 32)
    assert there["paper-methods-simclr-imagenet100-seed0"]["found"]["tuned"]["learning_rate"] == 1e-5


def test_a_released_checkpoint_takes_the_place_of_pre_training(imagenet, tmp_path, monkeypatch):
    import torch
    import torchvision

    torch.manual_seed(0)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(
        {"state_dict": {f"module.encoder_q.{key}": value for key, value in weights.items()}}, tmp_path / "moco.pth"
    )
    monkeypatch.setattr("qscore.study.reproduce.training.pretrain", crash)
    (tmp_path / "four.txt").write_text("\n".join(WNIDS.read_text().split()[:4]))
    tiny = TINY | {"precision": "32-true", "tune_batch_size": 10}
    found = reproduce(
        imagenet / "train",
        tmp_path / "out",
        test_images=imagenet / "val",
        scale="paper",
        stage="methods",
        methods="moco",
        classes=str(tmp_path / "four.txt"),
        checkpoints={"moco": str(tmp_path / "moco.pth")},
        overrides=tiny | {"curve_methods": "simclr"},
        device="cpu",
        workers=1,
    )
    assert found["done"] == ["paper-methods-moco-four-seed0"]
    result = results(tmp_path / "out")["paper-methods-moco-four-seed0"]
    assert result["settings"]["released"] == "moco.pth" and result["found"]["n_features"] == 512
    assert result["found"]["rise"] is None and "--checkpoint moco=moco.pth" in result["command"]
