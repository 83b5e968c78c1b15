import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_image, open_images
from qscore.images.published import _targets

datasets = pytest.importorskip("datasets")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("QSCORE_TORCHVISION_ROOT", str(tmp_path))
    monkeypatch.delenv("QSCORE_DOWNLOAD", raising=False)
    return tmp_path


@pytest.fixture
def mnist(root, rng):
    """Four training and two test digits, in the files that torchvision expects."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {}
    for part, n in (("train", 4), ("t10k", 2)):
        pixels[part] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = np.arange(n, dtype=np.uint8) + 5
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels[part].tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + labels.tobytes())
    return pixels


def test_torchvision_splits_labels_and_locators(mnist):
    train, test = open_images("torchvision:MNIST"), open_images("torchvision:MNIST/test")
    assert (len(train), len(test)) == (4, 2)
    assert test.labels == ["5 - five", "6 - six"] and test.class_names[0] == "0 - zero"
    record = test.record(1)
    assert (record.id, record.path) == ("MNIST/test#1", "torchvision:MNIST/test#1")
    for image in (test.image(1), open_image(record.path)):
        np.testing.assert_array_equal(np.asarray(image), np.dstack([mnist["t10k"][1]] * 3))
    assert train.record(0).path == "torchvision:MNIST/train#0"
    assert open_images("torchvision:MNIST/train").fingerprint == train.fingerprint != test.fingerprint


def test_torchvision_copies_carry_the_name(mnist):
    data = pickle.dumps(open_images("torchvision:MNIST/test"))
    assert len(data) < 200 and len(pickle.loads(data)) == 2


def test_torchvision_splits_by_name(root):
    for split, classes in (("train", ("AD", "AE")), ("test", ("AD",))):
        for name in classes:
            folder = root / "country211" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4), "red").save(folder / "1.jpg")
    assert open_images("torchvision:Country211").labels == ["AD", "AE"]
    assert open_images("torchvision:Country211/test").labels == ["AD"]
    (root / "country211" / "train" / "AE" / "1.jpg").write_bytes(b"")
    with pytest.raises(QScoreError, match="torchvision:Country211#1: cannot read the image: cannot identify"):
        open_images("torchvision:Country211").image(1)


def test_torchvision_paths_of_annotations_are_no_labels(root):
    voc = root / "VOCdevkit" / "VOC2012"
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (voc / folder).mkdir(parents=True)
        for name in ("1", "2"):
            Image.new("RGB", (4, 4), "red").save(voc / folder / f"{name}.{ending}")
    (voc / "Annotations").mkdir()
    for task in ("Main", "Segmentation"):
        (voc / "ImageSets" / task).mkdir(parents=True)
        (voc / "ImageSets" / task / "train.txt").write_text("1\n2\n")
    for folder, ending in (("image_2", "png"), ("label_2", "txt")):
        (root / "Kitti" / "raw" / "training" / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / "Kitti" / "raw" / "training" / folder / f"1.{ending}", "PNG")
    for name, n in (("VOCDetection", 2), ("VOCSegmentation", 2), ("Kitti", 1)):
        source = open_images(f"torchvision:{name}")
        assert (len(source), source.labels, source.class_names) == (n, None, None)
        assert source.record(0).label is None


def test_torchvision_strings_are_labels_where_they_are_classes():
    images = type("Images", (list,), {"classes": ["ant", "owl"]})([0, 1])
    images.targets, images.samples = ["a.xml", "b.xml"], [("a.jpg", "owl"), ("b.jpg", "ant")]
    assert _targets(images) == ["owl", "ant"]
    images.classes = ["ant"]
    assert _targets(images) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ImageFolder", "ImageFolder is any folder of images, not a published data set; name the folder itself"),
        ("DatasetFolder/a", "DatasetFolder is any folder of images, .* name the folder itself"),
        (
            "EMNIST",
            "expected a split, torchvision:EMNIST/ and one of byclass, bymerge, balanced, letters, .*; got none",
        ),
        ("MNIST", "cannot open this data set in .*; set QSCORE_TORCHVISION_ROOT to .* or QSCORE_DOWNLOAD=1"),
        ("CIFAR10/test", "cannot open this data set in "),
        ("Country211/tset", "cannot open this data set in "),
        ("CIFAR10/val", "expected the split train or test, got 'val'"),
        ("EuroSAT/test", "EuroSAT has no splits; leave out '/test'"),
        ("CIFAR1", "no image data set 'CIFAR1'; did you mean 'CIFAR10'"),
        ("FakeData", "no image data set 'FakeData'"),
        ("", "no image data set ''"),
    ],
)
def test_torchvision_names_that_are_refused(root, name, message):
    with pytest.raises(QScoreError, match=message) as caught:
        open_images(f"torchvision:{name}")
    assert "\n" not in str(caught.value)
    assert list(root.iterdir()) == []


def save_hub(folder, **columns):
    """A folder in one of the hub's formats: train.parquet with images of one colour each."""
    features = datasets.Features(
        {"image": datasets.Image(), **{name: feature for name, (feature, _) in columns.items()}}
    )
    images = [Image.new("RGB", (4, 4), (80 * i, 0, 0)) for i in range(3)]
    rows = datasets.Dataset.from_dict(
        {"image": images, **{name: values for name, (_, values) in columns.items()}}, features=features
    )
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    return rows


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def test_hub_images_labels_and_locators(tmp_path, cache):
    save_hub(tmp_path / "set", label=(datasets.ClassLabel(names=["ant", "owl"]), [1, 0, -1]))
    source = open_images(f"hf:{tmp_path / 'set'}")
    assert source.labels == ["owl", "ant", None] and source.class_names == ["ant", "owl"]
    record = source.record(2)
    assert (record.id, record.path) == ("train#2", f"hf:{tmp_path / 'set'}#2")
    assert [source.image(i).getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (80, 0, 0), (160, 0, 0)]
    assert open_image(record.path).getpixel((0, 0)) == (160, 0, 0)
    assert pickle.loads(pickle.dumps(source)).image(1).getpixel((0, 0)) == (80, 0, 0)
    assert open_images(f"hf:{tmp_path / 'set'}:train").fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [("int64", [3, 4, 5], [3, 4, 5]), ("string", ["b", "a", None], ["b", "a", None]), ("float32", [0.5] * 3, None)],
)
def test_hub_labels_without_classes(tmp_path, cache, feature, values, expected):
    save_hub(tmp_path / "set", label=(datasets.Value(feature), values))
    assert open_images(f"hf:{tmp_path / 'set'}").labels == expected


def test_hub_data_saved_to_disk(tmp_path, cache):
    save_hub(tmp_path / "set").save_to_disk(tmp_path / "saved")
    assert open_images(f"hf:{tmp_path / 'saved'}").image(2).getpixel((0, 0)) == (160, 0, 0)
    datasets.DatasetDict({"test": save_hub(tmp_path / "other")}).save_to_disk(tmp_path / "split")
    assert len(open_images(f"hf:{tmp_path / 'split'}:test")) == 3
    with pytest.raises(QScoreError, match="cannot load this data set: .*train"):
        open_images(f"hf:{tmp_path / 'split'}")


def test_hub_images_that_are_damaged_or_missing(tmp_path, cache):
    (tmp_path / "set").mkdir()
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"bytes": b"", "path": None}, None, {"bytes": b"text", "path": "a.png"}]
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    source = open_images(f"hf:{tmp_path / 'set'}")
    for i, message in enumerate(("got an empty file", "got an empty cell", "no known image format")):
        with pytest.raises(QScoreError, match=rf"set#{i}: expected an image, {'.*' * (i == 2)}{message}"):
            source.image(i)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"),
        ("hf:a:b:c:d", "expected hf:NAME"),
        ("hf:nobody/nothing", "cannot load this data set: .*; check the name, the split and the network"),
        ("hf:{set}:tset", "cannot load this data set: .*tset"),
        ("hf:{text}", "expected a column of images, got text"),
    ],
)
def test_hub_names_that_are_refused(tmp_path, cache, name, message):
    save_hub(tmp_path / "set")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("no image")
    with pytest.raises(QScoreError, match=message) as caught:
        open_images(name.format(set=tmp_path / "set", text=tmp_path / "text"))
    assert "\n" not in str(caught.value)


def test_hub_without_its_package(tmp_path):
    code = "import sys; sys.modules['datasets'] = None; from qscore.images import open_images; open_images('hf:a')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert "needs the package 'datasets', which is not installed: pip install \"qscore[hf]\"" in done.stderr
