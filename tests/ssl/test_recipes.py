import logging
from dataclasses import asdict

import pytest
from PIL import Image

from qscore import QScoreError
from qscore.encoders import build_backbone
from qscore.images import open_images, subset
from qscore.ssl import dino, swav
from qscore.ssl.methods import METHODS
from qscore.ssl.overrides import parse_overrides
from qscore.ssl.recipes import choose_backbone, choose_recipe, make_plan, typical_side
from qscore.ssl.simclr import RECIPES, Config

RECIPES_OF_DINO = dino.RECIPES
FITTING = {"swav": {"n_prototypes": 30}, "dino": {"output_dim": 64}, "moco": {"queue_size": 64}}


def plan(source, **changes):
    arguments = {"backbone": None, "recipe": "auto", "epochs": None, "overrides": {}, "image_size": None}
    arguments |= {"devices": 1, "accumulate": 1}
    return make_plan(changes.pop("method", "simclr"), source, **(arguments | changes))


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


@pytest.mark.parametrize(
    ("n", "side", "recipe", "backbone"),
    [
        (1000, 8, "small", "small:resnet10-16-r256"),
        (49_999, 300, "small", "torchvision:resnet18"),
        (50_000, 64, "cifar", "small:resnet18-64"),
        (50_000, 65, "imagenet", "torchvision:resnet50"),
    ],
)
def test_the_data_choose_recipe_and_backbone(n, side, recipe, backbone):
    assert choose_recipe(n, side) == recipe
    assert choose_backbone(recipe, side) == backbone


def test_the_choice_is_told(digits, caplog):
    caplog.set_level(logging.INFO, "qscore.ssl")
    chosen = plan(digits)
    assert (chosen.recipe, chosen.backbone, chosen.image_size) == ("small", "small:resnet10-16-r256", 8)
    assert "simclr on 1,797 images of 8 pixels: recipe small, backbone small:resnet10-16-r256" in caplog.text


def test_the_typical_side_is_the_median_of_the_shorter_ones(tmp_path):
    for i, size in enumerate([(20, 10), (12, 30), (500, 400)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    assert typical_side(open_images(tmp_path)) == 12


def test_large_images_are_trained_on_at_224_pixels(tmp_path):
    for i in range(2):
        Image.new("RGB", (500, 400)).save(tmp_path / f"{i}.png")
    chosen = plan(open_images(tmp_path))
    assert (chosen.image_size, chosen.config.augment.size, chosen.backbone) == (224, 224, "torchvision:resnet18")


def test_the_batch_shrinks_to_a_quarter_of_the_images(digits, few_digits):
    assert plan(digits, recipe="imagenet").config.batch_size == 1797 // 4
    assert plan(few_digits).config.batch_size == 6
    assert plan(few_digits, devices=2, accumulate=2, overrides={"batch_size": 23}).config.batch_size == 20


def test_a_shorter_training_keeps_the_shape_of_its_schedule(digits):
    assert plan(digits, recipe="imagenet", epochs=50).config.warmup_epochs == 5
    assert plan(digits, recipe="imagenet", epochs=50, overrides={"warmup_epochs": 1.0}).config.warmup_epochs == 1


def test_overrides_replace_fields_and_nested_fields(digits):
    config = plan(digits, recipe="cifar", overrides={"lr": 1, "augment.flip": 0.0, "augment.scale": (0.5, 1)}).config
    expected = asdict(RECIPES["cifar"])
    expected |= {"lr": 1, "augment": expected["augment"] | {"flip": 0.0, "scale": (0.5, 1), "size": 8}}
    assert asdict(config) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", ["imagenet", "cifar", "small"])
def test_views_of_every_method_have_the_sizes_of_the_images(method, recipe):
    images = subset(open_images("digits"), range(1000))
    config = plan(images, method=method, recipe=recipe, image_size=64, overrides=FITTING.get(method, {})).config
    module = METHODS[method].build(build_backbone("small:resnet10-2"), 16, config)
    assert [view.size for view in module.views] == [64, 64] + [24] * getattr(config, "n_local", 0)


def test_local_views_may_have_another_size(digits):
    overrides = {"local.size": 5, "n_local": 2, "augment2.blur": 0.5}
    config = plan(digits, method="dino", recipe="small", overrides=overrides).config
    assert (config.augment.size, config.augment2.size, config.local.size, config.augment2.blur) == (8, 8, 5, 0.5)
    assert config.augment.blur == RECIPES_OF_DINO["small"].augment.blur != 0.5


def test_what_goes_through_together_settles_what_a_recipe_leaves_open(digits):
    settled = plan(digits, method="swav", recipe="small", overrides={"batch_size": 64}, accumulate=4, devices=2).config
    assert (settled.batch_size, settled.n_prototypes) == (64, 8)
    with pytest.raises(QScoreError, match="n_prototypes: expected at most 16, got 20"):
        plan(digits, method="swav", recipe="small", overrides={"batch_size": 64, "n_prototypes": 20}, accumulate=4)


def test_parse_overrides_by_type():
    texts = ["epochs=3", "lr=1e-3", "optimizer=sgd", "augment.scale=0.2,1", "augment.flip=0"]
    parsed = parse_overrides(texts, Config)
    assert parsed == parse_overrides(texts, RECIPES["small"])
    assert parsed == {
        "epochs": 3,
        "lr": 0.001,
        "optimizer": "sgd",
        "augment.scale": (0.2, 1.0),
        "augment.flip": 0.0,
    }


def test_parse_overrides_of_other_kinds():
    assert parse_overrides(["batch_norm=true", "local.scale=0.1,0.2"], dino.Config) == {
        "batch_norm": True,
        "local.scale": (0.1, 0.2),
    }
    assert parse_overrides(["n_prototypes=none"], swav.Config) == {"n_prototypes": None}
    assert parse_overrides(["n_prototypes=30"], swav.Config) == {"n_prototypes": 30}


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("batch_norm=maybe", dino.Config, "batch_norm: expected true or false, got 'maybe'"),
        ("n_prototypes=few", swav.Config, "n_prototypes: expected an integer, or none, got 'few'"),
        ("augment2.blurr=1", dino.Config, "unknown setting 'augment2.blurr'; did you mean 'augment2.blur'? Known"),
        ("locl.scale=1,1", dino.Config, "unknown setting 'locl.scale'; did you mean 'local.scale'"),
    ],
)
def test_overrides_of_other_kinds_that_cannot_be_read(text, config, message):
    with pytest.raises(QScoreError) as error:
        parse_overrides([text], config)
    assert str(error.value).startswith(message)
    assert "augment.*, augment2.* and local.*" in str(error.value) or "unknown" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "'lr': expected key=value, such as lr=0.1"),
        ("epochs=1.5", "epochs: expected an integer, got '1.5'"),
        ("lr=fast", "lr: expected a number, got 'fast'"),
        ("augment.scale=0.2", "augment.scale: expected two numbers with a comma between, got '0.2'"),
        ("temprature=1", "unknown setting 'temprature'; did you mean 'temperature'"),
        ("augment.flop=1", "unknown setting 'augment.flop'; did you mean 'augment.flip'"),
        ("hue=1", "unknown setting 'hue'; did you mean 'augment.hue'"),
        ("augment=1", "unknown setting 'augment'"),
        ("augment.scale=a,b", "augment.scale: expected two numbers with a comma between, got 'a,b'"),
    ],
)
def test_overrides_that_cannot_be_read(text, message):
    with pytest.raises(QScoreError) as error:
        parse_overrides([text], Config)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "simclar"},
            "method 'simclar': expected one of simclr, moco, swav, byol, simsiam, dino, vicreg, barlow; "
            "did you mean 'simclr'",
        ),
        ({"recipe": "cifer"}, "recipe 'cifer': expected auto, imagenet, cifar, small; did you mean 'cifar'"),
        ({"backbone": "small:resnet11-2"}, "backbone 'small:resnet11-2': expected "),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"overrides": {"learning_rate": 1}}, "unknown setting 'learning_rate'"),
        ({"overrides": {"lr": "1"}}, "lr: expected a number, got '1'"),
        ({"overrides": {"lr": float("nan")}}, "lr: expected a number, got nan"),
        ({"overrides": {"lr": -1.0}}, "lr: expected a number of at least 0, got -1.0"),
        (
            {"overrides": {"trust_coefficient": -1.0}},
            "trust_coefficient: expected a number of at least 0, got -1.0",
        ),
        ({"overrides": {"batch_size": 1}}, "batch_size: expected 2 to 24, the number of images, got 1"),
        ({"overrides": {"batch_size": 25}}, "batch_size: expected 2 to 24, the number of images, got 25"),
        (
            {"overrides": {"batch_size": 8}, "accumulate": 5},
            "batch_size: expected at least 2 images in each of 5 parts",
        ),
        ({"overrides": {"warmup_epochs": 100.0}}, "warmup_epochs: expected from 0 to below "),
        ({"overrides": {"optimizer": "adam"}}, "optimizer 'adam': expected one of lars, adamw, sgd; did you mean"),
        ({"overrides": {"augment.size": 9}}, "augment.size: set the image size instead"),
        ({"overrides": {"augment.flip": 2}}, "augmentation: expected flip from 0 to 1, got 2"),
        ({"image_size": 2}, "augmentation: expected size from 4 to 4096 pixels, got 2"),
    ],
)
def test_wishes_that_cannot_be_met(few_digits, changes, message):
    with pytest.raises(QScoreError) as error:
        plan(few_digits, **changes)
    assert str(error.value).startswith(message)


def test_one_image_is_not_enough(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(QScoreError, match="expected at least 2 images to train on, got 1"):
        plan(open_images(tmp_path))
