import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_image, open_images
from qscore.images.opening import expand_braces


@pytest.fixture
def shards(tmp_path):
    """Two archives of one image each, ids 1 and 2, and a folder with one image."""
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "a.png"
    Image.new("RGB", (2, 2), "red").save(file)
    data = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    for i in (1, 2):
        np.savez(tmp_path / f"train-{i}.npz", data=data, offsets=np.array([0, len(data)]), ids=np.array([i]))
    return tmp_path


def ids(source):
    return [source.record(i).id for i in range(len(source))]


def test_pattern_joins_in_order(shards):
    source = open_images(shards / "train-*.npz")
    assert ids(source) == ["1", "2"] and source.name == str(shards / "train-*.npz")


def test_pattern_with_one_match(shards):
    source = open_images(str(shards / "train-[2].npz"))
    assert ids(source) == ["2"] and source.name.endswith("train-2.npz")


def test_list_of_anything(shards):
    assert ids(open_images([shards / "folder", str(shards / "train-*.npz")])) == ["a.png", "1", "2"]


def test_an_existing_name_is_no_pattern(shards):
    (shards / "folder").rename(shards / "odd[1]")
    assert ids(open_images(shards / "odd[1]")) == ["a.png"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{x,y}{1..2}", ["x1", "x2", "y1", "y2"]),
        ("{a,}b", ["ab", "b"]),
        ("{a}{}{..}{1..}", ["{a}{}{..}{1..}"]),
        ("plain", ["plain"]),
        ("", [""]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..100000}", "{000..999}{000..999}", "{0..999999999999}"])
def test_braces_are_bounded(pattern):
    with pytest.raises(QScoreError, match="expected at most 100,000 names, got more"):
        expand_braces(pattern)


def test_an_open_source_is_returned_as_it_is():
    source = open_images("digits")
    assert open_images(source) is source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", r"images 'digts': expected one of 'digits', .* no such file or folder; did you mean 'digits'\?"),
        ("nowhere/at/all", "expected one of .* a folder of images, .*; got no such file or folder$"),
        ("", "expected one of .* got no such file or folder"),
        ("x" * 5000, "File name too long"),
        ("nowhere-*.npz", r"nowhere-\*\.npz: no file or folder matches this pattern"),
        ([], "expected at least one source, got an empty list"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(QScoreError, match=message):
        open_images(name)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(QScoreError, match=r"list\.txt': expected one of .*; got a file"):
        open_images(tmp_path / "list.txt")


def test_locator_out_of_range():
    with pytest.raises(QScoreError, match="digits#1797: expected a position below 1797"):
        open_image("digits#1797")


def test_file_names_may_hold_the_sign(tmp_path):
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "a#17.png")
    assert open_image(str(tmp_path / "a#17.png")).getpixel((0, 0)) == (0, 0, 255)


def test_unknown_locator():
    with pytest.raises(QScoreError, match="tape#3: cannot read the image: No such file"):
        open_image("tape#3")


def test_images_load_neither_torch_nor_scikit_learn():
    code = "import sys, qscore.images; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
