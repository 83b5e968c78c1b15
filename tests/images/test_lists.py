import io
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_image, open_images

COLOURS = {"x/a.png": (250, 0, 0), "b.png": (0, 250, 0)}


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x").mkdir()
    for name, colour in COLOURS.items():
        (tmp_path / name).write_bytes(png(colour))
    return tmp_path


def write(path, text):
    path.write_text(text)
    return str(path)


def ids(source):
    return [source.record(i).id for i in range(len(source))]


def test_relative_paths_start_at_the_list(folder, monkeypatch):
    source = open_images(write(folder / "l.csv", "path\nx/a.png\nb.png\n"))
    assert ids(source) == ["x/a.png", "b.png"] and source.labels is None and source.class_names is None
    assert [source.record(i).path for i in range(2)] == [str(folder / name) for name in COLOURS]
    assert [source.image(i).getpixel((0, 0)) for i in range(2)] == list(COLOURS.values())
    monkeypatch.chdir(folder)
    assert open_images("l.csv").record(1).path == "b.png"


def test_ids_and_labels_of_csv(folder):
    source = open_images(write(folder / "l.csv", "label,weight,id,path\ncat,1,007,b.png\n,2,8,x/a.png\n"))
    assert ids(source) == ["007", "8"] and source.labels == ["cat", None] and source.class_names == ["cat"]
    assert source.record(1).label is None


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["3", "-1"], [3, -1]),
        (["3", ""], [3, None]),
        (["03", "1"], ["03", "1"]),
        (["3", "x"], ["3", "x"]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["", ""], None),
    ],
)
def test_csv_labels_are_numbers_only_where_nothing_is_lost(folder, labels, expected):
    text = "path,label\n" + "".join(f"{name},{label}\n" for name, label in zip(COLOURS, labels, strict=True))
    assert open_images(write(folder / "l.csv", text)).labels == expected


def test_parquet_as_pandas_writes_it(folder):
    frame = pd.DataFrame({"path": list(COLOURS), "id": [7, 8], "label": pd.Categorical(["owl", "ant"]), "score": 0.5})
    frame["path"] = frame["path"].astype("category")
    frame.to_parquet(folder / "l.parquet")
    source = open_images(folder / "l.parquet")
    assert ids(source) == ["7", "8"] and source.labels == ["owl", "ant"] and source.class_names == ["ant", "owl"]
    assert source.image(1).getpixel((0, 0)) == (0, 250, 0)
    frame.assign(label=np.array([4, 5], np.int16)).to_parquet(folder / "m.parquet")
    assert open_images(folder / "m.parquet").labels == [4, 5]


def test_absolute_paths_and_other_locators(folder):
    data = np.frombuffer(png((0, 0, 250)), dtype=np.uint8)
    np.savez(folder / "a.npz", data=data, offsets=np.array([0, len(data)]))
    source = open_images(write(folder / "l.csv", f"path\n{folder / 'b.png'}\na.npz#0\ndigits#17\n"))
    assert [source.image(i).getpixel((0, 0)) for i in range(2)] == [(0, 250, 0), (0, 0, 250)]
    assert source.image(2).tobytes() == open_image("digits#17").tobytes()
    assert source.record(2).path == "digits#17"


def test_lists_and_images_in_an_object_store(folder):
    store = fsspec.filesystem("memory")
    for name, colour in COLOURS.items():
        store.pipe(f"/lists/{name}", png(colour))
    store.pipe("/lists/l.csv", b"path\nx/a.png\nmemory://lists/b.png\n")
    try:
        source = open_images("memory://lists/l.csv")
        assert [source.record(i).path for i in range(2)] == [f"memory://lists/{name}" for name in COLOURS]
        assert [source.image(i).getpixel((0, 0)) for i in range(2)] == list(COLOURS.values())
        assert open_image(source.record(0).path).getpixel((0, 0)) == (250, 0, 0)
        local = open_images(write(folder / "l.csv", "path\nmemory://lists/b.png\n"))
        assert local.image(0).getpixel((0, 0)) == (0, 250, 0) and len(local.fingerprint) == 64
    finally:
        store.rm("/lists", recursive=True)


def test_fingerprint_follows_rows_and_files(folder):
    path = write(folder / "l.csv", "path\nx/a.png\nb.png\n")
    prints = [open_images(path).fingerprint, open_images(path).fingerprint]
    (folder / "b.png").write_bytes(png((1, 2, 3)) + b"more")
    prints.append(open_images(path).fingerprint)
    write(folder / "l.csv", "path\nb.png\nx/a.png\n")
    prints.append(open_images(path).fingerprint)
    assert len(set(prints)) == 3 and prints[0] == prints[1]


@pytest.mark.parametrize("container", ["c.npz", "c.tar", "c#d.tar"])
def test_fingerprint_follows_archives_and_tars(folder, container):
    def fill(colour):
        data = png(colour)
        if container.endswith(".npz"):
            np.savez(folder / container, data=np.frombuffer(data, np.uint8), offsets=[0, len(data)])
            return "0"
        with tarfile.open(folder / container, "w") as tar:
            member = tarfile.TarInfo("m#1.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        return "m#1.png"

    path = write(folder / "l.csv", f"path\n{container}#{fill((1, 2, 3))}\n")
    before = open_images(path)
    assert before.image(0).getpixel((0, 0)) == (1, 2, 3)
    fingerprint = before.fingerprint
    fill((4, 5, 6))
    os.utime(folder / container, ns=(0, 0))
    after = open_images(path)
    assert after.image(0).getpixel((0, 0)) == (4, 5, 6) and after.fingerprint != fingerprint


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_strings_of_every_kind(folder, kind):
    strings = pa.array(list(COLOURS), pa.string()).cast(kind)
    pq.write_table(pa.table({"path": strings, "id": strings, "label": strings}), folder / "l.parquet")
    source = open_images(folder / "l.parquet")
    assert ids(source) == source.labels == list(COLOURS)


def test_a_copy_for_a_worker(folder):
    source = pickle.loads(pickle.dumps(open_images(write(folder / "l.csv", "path\nb.png\n"))))
    assert source.image(0).getpixel((0, 0)) == (0, 250, 0)


def test_a_file_that_is_missing_fails_when_it_is_read(folder):
    source = open_images(write(folder / "l.csv", "path\nb.png\ngone.png\n"))
    with pytest.raises(QScoreError, match=r"gone\.png: cannot read the image: No such file"):
        source.image(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read this list of images: Empty CSV file"),
        ("path\n", "expected at least one image, got an empty list"),
        ("paths,label\na.png,1\n", "expected a column 'path', got 'paths', 'label'; did you mean 'paths'"),
        ("path,id\na.png,1\nb.png,1\n", "expected each id once, got '1' 2 times"),
        ("path\nb.png\nb.png\n", "expected each id once, got 'b.png' 2 times"),
        ("path,label\nb.png,1\n,2\n", "the path of row 2 is empty"),
        ("path,id\nb.png,\n", "the id of row 1 is empty"),
        ("path,label\nb.png,1,2\n", "cannot read this list of images: .*Expected 2 columns, got 3"),
        ("path,path\nb.png,b.png\n", "expected one column 'path', got 2"),
        (b"path\n\xff\xfe.png\n", "cannot read this list of images: .*invalid UTF8"),
    ],
)
def test_lists_that_are_refused(tmp_path, text, message):
    (tmp_path / "l.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(QScoreError, match=message) as caught:
        open_images(tmp_path / "l.csv")
    assert str(caught.value).startswith(str(tmp_path / "l.csv")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": [1, 2]}, "expected strings in the column 'path', got int64"),
        ({"path": ["a"], "id": [0.5]}, "expected strings in the column 'id', got double"),
        ({"path": ["a"], "label": [0.5]}, "expected labels as integers or strings, got double"),
        ({"path": ["a", None]}, "the path of row 2 is empty"),
        ({"path": pa.array([], pa.string())}, "got an empty list"),
        ({"image": ["a"]}, "expected a column 'path', got 'image'"),
    ],
)
def test_parquet_lists_that_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    with pytest.raises(QScoreError, match=message):
        open_images(tmp_path / "l.parquet")


def test_no_list(tmp_path):
    with pytest.raises(QScoreError, match=r"gone\.csv: no such file"):
        open_images(tmp_path / "gone.csv")
    with pytest.raises(QScoreError, match=r"l\.parquet: cannot read this list of images"):
        Path(tmp_path / "l.parquet").write_bytes(b"PAR1 or not")
        open_images(tmp_path / "l.parquet")
