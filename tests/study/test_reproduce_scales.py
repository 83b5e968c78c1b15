from dataclasses import replace

import pytest
from PIL import Image

from qscore import QScoreError
from qscore.encoders import build_backbone
from qscore.images import open_images
from qscore.ssl import METHODS
from qscore.study.reproduce.context import WNIDS, choose_classes, some_images
from qscore.study.reproduce.scales import SCALES, Scale, choose_scale, named_methods


def test_the_presets_are_in_range_and_named():
    for name, scale in SCALES.items():
        scale.check()
        assert scale.name == name == choose_scale(name).name
        for shapes in (scale.shapes_train, scale.shapes_test, scale.shapes_free):
            assert len(open_images(shapes)) >= 2000
    assert SCALES["small"] == Scale()


def test_the_stem_of_medium_is_that_of_resnet_18_for_cifar():
    network = build_backbone(SCALES["medium"].backbone)
    assert (
        sum(p.numel() for p in network.parameters()) == 11_168_832
    )  # torchvision's, less its stem and classifier, 3x3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"curve_keep": 7},
            "curve_keep: expected a divisor of curve_epochs, so that the last epoch is kept, got 7 and 60",
        ),
        ({"methods_keep": 3}, "methods_keep: expected a divisor of methods_epochs"),
        ({"shapes_keep": 4}, "shapes_keep: expected a divisor of shapes_epochs, got 4 and 30"),
        ({"repair_seeds": 0}, "repair_seeds: expected at least 1, got 0"),
        ({"views": 1}, "views: expected 2 to 127, got 1"),
        ({"paper_rate": 0.0}, "paper_rate: expected a number above 0, got 0.0"),
        ({"methods_rate": "low"}, "methods_rate: expected calibrated or paper, got 'low'"),
        ({"repair_method": "sim"}, "repair_method: expected all, or some of simclr"),
        ({"curve_methods": ""}, "curve_methods: expected all, or some of simclr"),
    ],
)
def test_what_is_out_of_range_is_refused(changes, message):
    with pytest.raises(QScoreError, match=f"^{message}"):
        replace(Scale(), **changes).check()


def test_names():
    assert named_methods("all", tuple(METHODS)) == tuple(METHODS)
    with pytest.raises(
        QScoreError, match="^methods: expected all, or some of simclr, .*, got 'simclear'; did you mean"
    ):
        named_methods("simclear", tuple(METHODS))
    with pytest.raises(QScoreError, match="^scale 'smal': expected one of small, medium, paper; did you mean"):
        choose_scale("smal")


def test_the_calibrated_rate_grows_with_the_batch():
    assert Scale().calibrated_rate("byol", 512) == pytest.approx(2 * Scale().calibrated_rate("byol", 256))


def test_imagenet_100_has_a_hundred_classes():
    wnids = WNIDS.read_text().split()
    assert len(wnids) == len(set(wnids)) == 100
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in wnids)


def test_classes_are_chosen_by_a_list(tmp_path):
    wnids = WNIDS.read_text().split()
    for wnid in [*wnids, "n01440764"]:  # a tench is not among them
        (tmp_path / "train" / wnid).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / wnid / "a.png")
    source = open_images(tmp_path / "train")
    assert len(source) == 101 and sorted(choose_classes(source, "imagenet100").labels) == sorted(wnids)
    (tmp_path / "two.txt").write_text(f"n01440764\n{wnids[0]}\n")
    assert len(choose_classes(source, str(tmp_path / "two.txt"))) == 2
    (tmp_path / "two.txt").write_text("n01440764\nn00000001\n")
    with pytest.raises(QScoreError, match=r"1 of 2 classes of .* are not there, the first n00000001$"):
        choose_classes(source, str(tmp_path / "two.txt"))
    with pytest.raises(
        QScoreError, match="^classes 'imagenet10': expected imagenet100, or a file with one label a line"
    ):
        choose_classes(source, "imagenet10")


def test_images_are_drawn_alike_each_time(tmp_path):
    digits = open_images("digits")
    some = some_images(digits, 50, "test")
    assert [some.record(i).id for i in range(50)] == [some_images(digits, 50, "test").record(i).id for i in range(50)]
    assert some_images(digits, None, "test") is digits is some_images(digits, 1797, "test")
    (tmp_path / "list.csv").write_text("path\ndigits#1\ndigits#2\n")
    with pytest.raises(QScoreError, match="expected a label on every image, which a reproduction tests against"):
        some_images(open_images(tmp_path / "list.csv"), None, "test")
