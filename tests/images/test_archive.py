import io
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_image, open_images
from qscore.images.archive import ArchiveSource

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def arrays(**changes):
    files = []
    for colour in COLOURS:
        stream = io.BytesIO()
        Image.new("RGB", (4, 3), colour).save(stream, "PNG")
        files.append(stream.getvalue())
    made = {
        "data": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array([1, 0, 1], dtype=np.uint8),
        "ids": np.array([7, 5, 9], dtype=np.int32),
        "class_names": np.array(["cat", "dog"]),
    } | changes
    return {name: array for name, array in made.items() if array is not None}


@pytest.fixture
def write(tmp_path):
    def write(name="a.npz", **changes):
        np.savez(tmp_path / name, **arrays(**changes))
        return str(tmp_path / name)

    return write


def test_everything_is_read(write):
    path = write()
    source = open_images(path)
    assert [source.record(i).id for i in range(len(source))] == ["7", "5", "9"]
    assert [source.record(i).path for i in range(3)] == [f"{path}#{i}" for i in range(3)]
    assert source.labels == ["dog", "cat", "dog"] == [source.record(i).label for i in range(3)]
    assert source.class_names == ["cat", "dog"]
    assert [source.image(i).getpixel((0, 0)) for i in range(3)] == COLOURS
    assert [open_image(source.record(i).path).getpixel((0, 0)) for i in range(3)] == COLOURS


def test_compressed_archives_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    assert open_images(tmp_path / "a.npz").image(2).getpixel((0, 0)) == COLOURS[2]


@pytest.mark.parametrize("bomb", ["data", "ids"])
def test_zip_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, bomb):
    changes = {"data": {"data": np.zeros(80 << 20, np.uint8)}, "ids": {"ids": np.zeros(3, "U9000000")}}[bomb]
    np.savez_compressed(tmp_path / "a.npz", **arrays(**changes))
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(QScoreError, match=r"a\.npz: [\d,]+ bytes that unpack to [\d,]{10,}: a zip bomb, not images"):
        open_images(tmp_path / "a.npz")


def test_arrays_that_are_not_read_are_no_bomb(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays(masks=np.zeros(80 << 20, np.uint8)))
    assert len(open_images(tmp_path / "a.npz")) == 3


def test_image_data_and_image_offsets(write):
    made = arrays()
    path = write(data=None, offsets=None, image_data=made["data"], image_offsets=made["offsets"])
    assert ArchiveSource(path).image(1).getpixel((0, 0)) == COLOURS[1]


def test_labels_without_names_are_numbers(write):
    source = ArchiveSource(write(class_names=None))
    assert source.labels == [1, 0, 1] and source.class_names is None
    assert type(source.labels[0]) is int


def test_labels_that_are_names(write):
    source = ArchiveSource(write(labels=np.array(["owl", "ant", "owl"]), class_names=None))
    assert source.labels == ["owl", "ant", "owl"] and source.class_names == ["ant", "owl"]


def test_no_labels(write):
    source = ArchiveSource(write(labels=None))
    assert source.labels is None and source.class_names is None and source.record(0).label is None


def test_ids_as_bytes_are_the_same_as_strings(write):
    source = ArchiveSource(write(ids=np.char.encode(["a", "é", "7"], "utf-8")))
    assert [source.record(i).id for i in range(3)] == ["a", "é", "7"]


def test_ids_default_to_stem_and_number(write):
    assert ArchiveSource(write("set.npz", ids=None)).record(2).id == "set#2"


def test_fingerprint_follows_the_content(write, tmp_path):
    before = ArchiveSource(write("a.npz")).fingerprint
    assert before == ArchiveSource(write("b.npz")).fingerprint and len(before) == 64
    changed = arrays()["data"].copy()
    changed[-20] ^= 1
    assert before != ArchiveSource(write("c.npz", data=changed)).fingerprint
    assert before != ArchiveSource(write("d.npz", ids=np.array([7, 5, 8]))).fingerprint


def test_pickle_carries_the_path_only(write):
    source = ArchiveSource(write())
    data = pickle.dumps(source)
    assert len(data) < 300
    assert pickle.loads(data).image(1).getpixel((0, 0)) == COLOURS[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_it(write, method):
    source = ArchiveSource(write())
    with multiprocessing.get_context(method).Pool(1) as pool:
        [image] = pool.map(source.image, [2])
    assert image.getpixel((0, 0)) == COLOURS[2]


def test_a_rewritten_file_is_read_again(write):
    path = write()
    assert open_image(f"{path}#0").getpixel((0, 0)) == COLOURS[0]
    made = arrays()
    swapped = made["data"][made["offsets"][1] :]
    write(data=swapped, offsets=made["offsets"][1:] - made["offsets"][1], labels=None, ids=None)
    assert open_image(f"{path}#0").getpixel((0, 0)) == COLOURS[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": None},
            "expected the arrays 'data' and 'offsets', or .* got 'class_names', 'ids', 'labels', 'offsets'",
        ),
        ({"data": np.zeros((2, 2), np.uint8)}, r"expected image data as 1-D uint8, got uint8 of shape \(2, 2\)"),
        ({"data": np.zeros(9)}, "expected image data as 1-D uint8, got float64"),
        ({"offsets": np.array([0])}, r"expected offsets as n \+ 1 integers, n >= 1, got int64 of shape \(1,\)"),
        ({"offsets": np.array([0.0, 1.0])}, r"expected offsets as n \+ 1 integers"),
        ({"offsets": np.array([0, 5, 9, 12])}, "expected offsets rising from 0 to .*, got offsets from 0 to 12"),
        ({"offsets": np.array([0, 99, 9, arrays()["data"].size])}, "that also fall"),
        ({"offsets": np.array([4, 9, 9, arrays()["data"].size])}, "got offsets from 4 to"),
        ({"labels": np.array([0, 1])}, r"expected labels of shape \(3,\), one for each image, got \(2,\)"),
        ({"labels": np.array([0, 1, 2])}, "expected labels from 0 to 1 for 2 class names, got 0 to 2"),
        ({"labels": np.array([0, -1, 1])}, "expected labels from 0 to 1 for 2 class names, got -1 to 1"),
        ({"labels": np.zeros(3)}, "expected labels as integers or strings, got float64"),
        ({"labels": np.array([None, 1, "x"], dtype=object)}, "Python objects, which are never unpickled"),
        ({"ids": np.arange(4)}, r"expected ids of shape \(3,\)"),
        ({"ids": np.array([1, 2, 1])}, "expected each id once, got '1' 2 times"),
    ],
)
def test_contradictions_are_refused(write, changes, message):
    path = write(**changes)
    with pytest.raises(QScoreError, match=message) as refused:
        ArchiveSource(path)
    assert str(refused.value).startswith(path)


def test_missing_file(tmp_path):
    with pytest.raises(QScoreError, match=r"gone\.npz: no such file"):
        open_images(tmp_path / "gone.npz")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(QScoreError, match=r"a\.npz: cannot read this \.npz archive: File is not a zip file"):
        open_images(tmp_path / "a.npz")


def test_damaged_image_is_named(write):
    made = arrays()
    data = made["data"].copy()
    data[made["offsets"][1] : made["offsets"][2]] = 0
    path = write(data=data)
    with pytest.raises(QScoreError, match=r"a\.npz#1: expected an image"):
        ArchiveSource(path).image(1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutations_are_read_or_refused(write, draw):
    path = write("m.npz")
    mutated = bytearray(Path(path).read_bytes())
    for _ in range(draw.draw(st.integers(1, 3))):
        mutated[draw.draw(st.integers(0, len(mutated) - 1))] = draw.draw(st.integers(0, 255))
    Path(path).write_bytes(mutated)
    try:
        source = ArchiveSource(path)
        assert [source.image(i).mode for i in range(len(source))] == ["RGB"] * len(source)
    except QScoreError as error:
        assert path in str(error)


def test_cifar10(data_folder):
    source = open_images(data_folder / "cifar10" / "test.npz")
    assert len(source) == 10000 and source.class_names[0] == "airplane"
    assert source.image(0).size == (32, 32) and source.labels[0] in source.class_names


def test_animal_masks(data_folder):
    source = open_images(data_folder / "animal_masks" / "animal4_caltech_masks.npz")
    assert (
        len(source) == 243 and source.record(0).id == "elephant/image_0001.jpg" and source.record(0).label == "elephant"
    )
