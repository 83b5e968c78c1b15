import gzip
import io
import json
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_image, open_images
from qscore.images.tars import TarSource


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(stream, "PNG")
    return stream.getvalue()


RED, GREEN, BLUE = [png(colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]


def pack(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a fraction makes a second header, as webdataset writes it
            tar.addfile(info, io.BytesIO(content))
    return path


def colour(image):
    return image.getpixel((0, 0))


def records(source):
    return [source.record(i) for i in range(len(source))]


def test_members_are_grouped_by_key(tmp_path):
    path = pack(tmp_path / "b.tar", [("u/2.cls", b"7\n"), ("u/2.png", RED), ("u/2.seg.png", BLUE), ("1.PNG", GREEN)])
    source = open_images(path)
    assert [r.id for r in records(source)] == ["b/u/2", "b/1"]
    assert [r.path for r in records(source)] == [f"{path}#u/2.png", f"{path}#1.PNG"]
    assert source.labels == [7, None] and source.class_names is None
    assert [colour(source.image(i)) for i in range(2)] == [(250, 0, 0), (0, 250, 0)]
    assert [colour(open_image(r.path)) for r in records(source)] == [(250, 0, 0), (0, 250, 0)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_and_long_names(tmp_path, format):
    name = "folder/" * 12 + "k" * 90 + ".png"
    path = pack(tmp_path / "b.tar", [(name, RED), ("z.png", BLUE)], format=format)
    source = open_images(path)
    assert records(source)[0].path == f"{path}#{name}" and colour(source.image(0)) == (250, 0, 0)
    assert colour(source.image(1)) == (0, 0, 250)


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"cls": b"3"}, 3),
        ({"cls": b"-1"}, -1),
        ({"cls": b"cat\n"}, "cat"),
        ({"cls": b"x" * 201}, None),
        ({"cls": b"two\nlines"}, None),
        ({"cls": b"9" * 5000}, None),
        ({"txt": b"tabby cat"}, None),
        ({"txt": b"caf\xe9"}, None),
        ({"txt": b"9" * 5000}, None),
        ({"txt": b"x" * (2**20 + 1)}, None),
        ({"txt": b"12\n"}, 12),
        ({"json": b'{"label": 0.5}', "txt": b"12"}, 12),
        ({"json": b'{"label": [1]}'}, None),
        ({"json": b"true"}, None),
        ({"json": b'{"label": 9223372036854775808}'}, None),
        ({"json": b'{"label": 4, "cls": 5}'}, 4),
        ({"json": b'{"cls": "dog"}'}, "dog"),
        ({"json": b'"dog"'}, "dog"),
        ({"json": b'{"url": "u"}', "txt": b"a caption"}, None),
        ({"txt": b"a caption", "json": b'{"label": 1}', "cls": b"2"}, 2),
        ({"cls": b""}, None),
        ({}, None),
    ],
)
def test_labels(tmp_path, members, label):
    path = pack(
        tmp_path / "b.tar", [(f"1.{ending}", content) for ending, content in members.items()] + [("1.png", RED)]
    )
    source = open_images(path)
    assert source.record(0).label == label and source.labels == (None if label is None else [label])
    assert source.class_names == ([label] if isinstance(label, str) else None)


def test_labels_of_two_kinds_become_strings(tmp_path):
    path = pack(tmp_path / "b.tar", [("1.png", RED), ("1.cls", b"3"), ("2.png", RED), ("2.cls", b"cat")])
    assert open_images(path).labels == ["3", "cat"]


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("json", b"{", r"1\.json: cannot read this label"),
        ("json", b"[" * 100_000, r"1\.json: cannot read this label"),
        ("cls", b"\xff", r"1\.cls: cannot read this label"),
    ],
)
def test_labels_that_are_refused(tmp_path, ending, content, message):
    with pytest.raises(QScoreError, match=message) as caught:
        open_images(pack(tmp_path / "b.tar", [("1.png", RED), (f"1.{ending}", content)]))
    assert "\n" not in str(caught.value)


def test_captions_are_no_labels(tmp_path, caplog):
    images = [(f"{i}.png", RED) for i in range(3)]
    path = pack(tmp_path / "b.tar", [*images, ("0.txt", b"7"), ("1.txt", b"two dogs"), ("2.txt", b"9")])
    assert open_images(path).labels is None
    [line] = caplog.messages
    assert line == f"{path}: ignored the .txt files: not each of them is an integer, so they are captions"
    path = pack(tmp_path / "b.tar", [*images, ("0.txt", b"7"), ("1.txt", b"8"), ("2.txt", b"9")])
    assert open_images(path).labels == [7, 8, 9]


def test_labels_of_another_kind_are_ignored_with_one_note(tmp_path, caplog):
    labels = [("0.json", b'{"label": 0.5}'), ("1.json", b'{"label": [1, 2]}'), ("2.json", b'{"label": "owl"}')]
    path = pack(tmp_path / "b.tar", [*[(f"{i}.png", RED) for i in range(3)], *labels])
    assert open_images(path).labels == [None, None, "owl"]
    assert caplog.messages == [f"{path}: ignored 2 .json files whose label is no integer or string"]


def test_ranges_of_tars(tmp_path):
    for i, data in enumerate((RED, GREEN, BLUE)):
        pack(tmp_path / f"t-{i:02d}.tar", [("0.png", data)])
    expected = ["t-00/0", "t-01/0", "t-02/0"]
    for pattern in ("t-{00..02}.tar", "t-*.tar", "t-{00,01,02}.tar", "t-{00,0[12]}.tar"):
        assert [r.id for r in records(open_images(tmp_path / pattern))] == expected
    assert colour(open_images(tmp_path / "t-{00..02}.tar").image(2)) == (0, 0, 250)
    with pytest.raises(QScoreError, match=r"t-03\.tar: no such file"):
        open_images(tmp_path / "t-{02..03}.tar")


def test_the_later_of_two_members_of_one_name_counts(tmp_path):
    path = pack(tmp_path / "b.tar", [("1.png", RED), ("1.cls", b"1"), ("1.png", BLUE), ("1.cls", b"2")])
    source = open_images(path)
    assert len(source) == 1 and colour(source.image(0)) == colour(open_image(f"{path}#1.png")) == (0, 0, 250)
    assert source.labels == [2]


def test_names_that_escape_harm_nothing(tmp_path):
    victim = tmp_path / "victim.png"
    victim.write_bytes(GREEN)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "b.tar"
    names = ["../victim.png", str(victim), "a/../../victim.png"]
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(RED)
            tar.addfile(info, io.BytesIO(RED))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = kind, str(victim)
            tar.addfile(link)
        device = tarfile.TarInfo("zero.png")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
        tar.addfile(device)
    source = open_images(path)
    assert [r.path for r in records(source)] == [f"{path}#{name}" for name in names]
    assert {colour(source.image(i)) for i in range(3)} == {(250, 0, 0)}
    assert {colour(open_image(r.path)) for r in records(source)} == {(250, 0, 0)}
    assert victim.read_bytes() == GREEN and [p.name for p in (tmp_path / "in").iterdir()] == ["b.tar"]


def test_hidden_members_and_folders_are_left_out(tmp_path):
    path = tmp_path / "b.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("d.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("./._1.png", "./1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(RED)
            tar.addfile(info, io.BytesIO(RED))
    assert [r.path for r in records(open_images(path))] == [f"{path}#1.png"]


def test_samples_that_are_lost_by_their_names_are_told(tmp_path, caplog):
    names = ["1.png", "1.seg.png", "2.png", "2.seg.png", "x.2024.png", ".3.png", "._1.png", "1.png"]
    path = pack(tmp_path / "b.tar", [(name, RED) for name in names])
    assert [r.id for r in records(open_images(path))] == ["b/1", "b/2", "b/x"]
    assert sorted(caplog.messages) == [
        f"{path}: left out 1 images that are hidden files",
        f"{path}: left out 1 images that were replaced by a later one of the same name",
        f"{path}: left out 2 images that stand beside an image named KEY.ENDING, as masks do",
    ]


def test_images_that_share_a_key_are_samples_each(tmp_path, caplog):
    names = ["u/ok.jpg", *[f"u/img.{i:03d}.jpg" for i in range(50)], "two.jpg", "two.PNG"]
    path = pack(tmp_path / "b.tar", [*[(name, RED) for name in names], ("two.cls", b"5")])
    source = open_images(path)
    assert [r.id for r in records(source)] == ["b/u/ok", *[f"b/{name}" for name in names[1:]]]
    assert [r.path for r in records(source)] == [f"{path}#{name}" for name in names]
    assert source.labels == [None] * 51 + [5, 5]
    assert caplog.messages == [f"{path}: 52 images share a key with others: each is a sample, its name the id"]


def test_images_that_are_links_are_told(tmp_path, caplog):
    path = tmp_path / "b.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("1.png")
        info.size = len(RED)
        tar.addfile(info, io.BytesIO(RED))
        for name, kind in (("2.png", tarfile.LNKTYPE), ("3.png", tarfile.LNKTYPE), ("4.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "1.png"
            tar.addfile(link)
    assert len(open_images(path)) == 1
    assert caplog.messages == [
        f"{path}: left out 2 images that are hard links",
        f"{path}: left out 1 images that are symbolic links",
    ]


def test_a_damaged_image_is_named(tmp_path):
    path = pack(tmp_path / "b.tar", [("1.png", RED[:30]), ("2.png", b""), ("3.png", RED)])
    source = open_images(path)
    for i in (0, 1):
        with pytest.raises(QScoreError, match=rf"b\.tar#{i + 1}\.png: "):
            source.image(i)
    assert colour(source.image(2)) == (250, 0, 0)


@pytest.mark.parametrize(
    ("tar", "member"),
    [("X.TAR", "a.jpg"), ("d.tar", "q/x.tar#a.jpg"), ("d.tar#q.tar", "a.png"), ("b.tar", "k" * 300 + ".png")],
)
def test_locators_of_odd_names(tmp_path, tar, member):
    pack(tmp_path / "d.tar", [("other.png", BLUE)])
    path = pack(tmp_path / tar, [(member, RED)])
    source = open_images(path)
    assert source.record(0).path == f"{path}#{member}" and not source.record(0).id.startswith("X.TAR")
    assert colour(open_image(source.record(0).path)) == (250, 0, 0)


def test_locators_of_odd_names_in_a_store(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe("/tars/d.tar", pack(tmp_path / "t.tar", [("q/x.tar#a.png", RED)]).read_bytes())
    try:
        assert colour(open_image("memory://tars/d.tar#q/x.tar#a.png")) == (250, 0, 0)
    finally:
        store.rm("/tars", recursive=True)


def test_unknown_member(tmp_path):
    path = pack(tmp_path / "b.tar", [("1.png", RED)])
    with pytest.raises(QScoreError, match=r"b\.tar#2\.png: no such image in .*b\.tar"):
        open_image(f"{path}#2.png")


def test_a_tar_that_was_written_again_is_read_again(tmp_path):
    path = pack(tmp_path / "b.tar", [("1.png", RED)])
    before = open_images(path).fingerprint
    assert colour(open_image(f"{path}#1.png")) == (250, 0, 0)
    pack(path, [("0.png", GREEN), ("1.png", BLUE)])
    assert colour(open_image(f"{path}#1.png")) == (0, 0, 250)
    assert before != open_images(path).fingerprint == open_images(path).fingerprint


def test_a_copy_for_a_worker(tmp_path):
    source = pickle.loads(pickle.dumps(open_images(pack(tmp_path / "b.tar", [("1.png", RED), ("2.png", BLUE)]))))
    assert colour(source.image(1)) == (0, 0, 250)


def test_tars_in_an_object_store(tmp_path):
    store = fsspec.filesystem("memory")
    for i, data in enumerate((RED, BLUE)):
        store.pipe(f"/tars/t-{i}.tar", pack(tmp_path / "t.tar", [("1.png", data), ("1.cls", b"3")]).read_bytes())
    try:
        source = open_images("memory://tars/t-{0..1}.tar")
        assert source.labels == [3, 3] and colour(source.image(1)) == (0, 0, 250)
        assert source.record(1).path == "memory://tars/t-1.tar#1.png"
        assert colour(open_image(source.record(1).path)) == (0, 0, 250)
    finally:
        store.rm("/tars", recursive=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read this tar file: empty file"),
        (b"<html>not found</html>", "cannot read this tar file: truncated header"),
        (b"x" * 2000, "cannot read this tar file: .*fetch it again"),
        (gzip.compress(b"x" * 10_000, mtime=0), "cannot read this tar file: .*or decompress it first"),
        (b"\0" * 10_240, "found none in this tar file"),
    ],
)
def test_files_that_are_no_tar(tmp_path, content, message):
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(QScoreError, match=message) as caught:
        open_images(tmp_path / "b.tar")
    assert "\n" not in str(caught.value)


def test_a_truncated_tar_is_refused_and_one_without_its_end_is_read(tmp_path):
    whole = pack(tmp_path / "a.tar", [("1.png", RED), ("2.png", BLUE)], format=tarfile.USTAR_FORMAT).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:2048])
    assert len(open_images(tmp_path / "b.tar")) == 2
    for size in (600, 1536 + 20, 1100):
        (tmp_path / "b.tar").write_bytes(whole[:size])
        with pytest.raises(QScoreError, match=r"b\.tar: cannot read this tar file"):
            open_images(tmp_path / "b.tar")


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = pack(tmp_path / "b.tar", [("1.png", RED), ("2.png", BLUE)], format=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(QScoreError, match="damaged at byte 1,024"):
        open_images(path)


def test_a_compressed_tar_is_refused_with_the_cure(tmp_path):
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(QScoreError, match="a compressed tar, which cannot be read at random: decompress it first"):
        open_images(tmp_path / "b.tar.gz")


def test_a_thousand_mutations_are_read_or_refused(tmp_path):
    whole = pack(tmp_path / "a.tar", [("1.png", RED), ("1.json", json.dumps({"label": 1}).encode())]).read_bytes()
    rng = np.random.default_rng(0)
    path, read = tmp_path / "b.tar", 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, 4096)] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            source = TarSource(str(path))
            read += sum(source.image(i).mode == "RGB" for i in range(len(source)))
        except QScoreError as error:
            assert "\n" not in str(error)
    assert 0 < read < 1000
