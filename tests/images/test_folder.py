import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from qscore._validate import QScoreError
from qscore.images import open_image, open_images
from qscore.images.folder import FolderSource


def paint(path, colour="red", size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def classes(tmp_path):
    paint(tmp_path / "dog" / "b.png", "red")
    paint(tmp_path / "cat" / "a.jpg", "blue")
    paint(tmp_path / "cat" / "c.PNG", "green")
    return tmp_path


def test_class_folders_are_labels(classes):
    source = open_images(classes)
    assert [source.record(i).id for i in range(len(source))] == ["cat/a.jpg", "cat/c.PNG", "dog/b.png"]
    assert source.labels == ["cat", "cat", "dog"] == [source.record(i).label for i in range(3)]
    assert source.class_names == ["cat", "dog"]
    assert source.name == str(classes)


def test_flat_folder_has_no_labels(tmp_path):
    paint(tmp_path / "a.png")
    source = FolderSource(str(tmp_path))
    assert source.labels is None and source.class_names is None and source.record(0).label is None


def test_only_depth_one_is_a_label(tmp_path):
    for name in ("a.png", "x/b.png", "x/y/c.png"):
        paint(tmp_path / name)
    assert FolderSource(str(tmp_path)).labels == [None, "x", None]


def test_locator_reopens_the_image(classes):
    source = FolderSource(str(classes))
    record = source.record(2)
    assert record.path == str(classes / "dog" / "b.png")
    assert open_image(record.path).getpixel((0, 0)) == source.image(2).getpixel((0, 0)) == (255, 0, 0)


def test_hidden_files_and_other_files_are_left_out(classes):
    for name in ("notes.txt", ".hidden.png", "cat/._a.jpg", ".cache/d.png"):
        (classes / name).parent.mkdir(exist_ok=True)
        (classes / name).write_text("no image")
    assert len(FolderSource(str(classes))) == 3


def test_linked_folders_are_followed_but_not_in_circles(classes, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    paint(elsewhere / "e.png")
    (classes / "bird").symlink_to(elsewhere)
    (classes / "cat" / "loop").symlink_to(classes)
    assert [FolderSource(str(classes)).record(i).id for i in range(4)] == [
        "bird/e.png",
        "cat/a.jpg",
        "cat/c.PNG",
        "dog/b.png",
    ]


def test_folders_linked_to_each_other_are_not_walked_forever(classes):
    (classes / "cat" / "x").symlink_to(classes / "dog")
    (classes / "dog" / "y").symlink_to(classes / "cat")
    (classes / "cat" / "self").symlink_to(classes / "cat" / "self")
    source = FolderSource(str(classes))
    assert [source.record(i).id for i in range(len(source))] == [
        "cat/a.jpg",
        "cat/c.PNG",
        "cat/x/b.png",
        "dog/b.png",
        "dog/y/a.jpg",
        "dog/y/c.PNG",
    ]


def test_listing_asks_no_file_for_its_size(classes, monkeypatch):
    monkeypatch.setattr(Path, "stat", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("asked"))
    source = FolderSource(str(classes))
    assert len(source) == 3 and source.record(1).label == "cat"


def test_pipes_are_no_images(classes):
    os.mkfifo(classes / "cat" / "b.png")
    assert len(FolderSource(str(classes))) == 3


def test_a_folder_that_may_not_be_listed(classes, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("dog/"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(QScoreError, match=r"dog: cannot list the folder: Permission denied"):
        FolderSource(str(classes))


def test_empty_folder(tmp_path):
    with pytest.raises(QScoreError, match="expected images .* found none in this folder") as caught:
        open_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_copies_are_small_and_read_on_their_own(classes):
    source = pickle.loads(pickle.dumps(FolderSource(str(classes))))
    assert source.image(2).getpixel((0, 0)) == (255, 0, 0)


def test_fingerprint_follows_the_files_not_the_place(classes, tmp_path_factory):
    before = FolderSource(str(classes)).fingerprint
    assert before == FolderSource(str(classes)).fingerprint and len(before) == 64
    os.utime(classes / "dog" / "b.png", ns=(0, 12345))
    touched = FolderSource(str(classes)).fingerprint
    paint(classes / "dog" / "z.png")
    assert len({before, touched, FolderSource(str(classes)).fingerprint}) == 3
    moved = classes.rename(tmp_path_factory.mktemp("new") / "place")
    (moved / "dog" / "z.png").unlink()
    assert FolderSource(str(moved)).fingerprint == touched


def test_link_to_nowhere_fails_when_it_is_read(classes):
    (classes / "cat" / "b.png").symlink_to(classes / "gone.png")
    source = FolderSource(str(classes))
    assert len(source.fingerprint) == 64
    with pytest.raises(QScoreError, match=r"b\.png: cannot read the image: No such file"):
        source.image(1)


def test_damaged_image_is_named(classes):
    (classes / "cat" / "a.jpg").write_bytes(b"")
    with pytest.raises(QScoreError, match=r"cat.a\.jpg: expected an image, got an empty file"):
        FolderSource(str(classes)).image(0)


def test_folder_without_images(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(QScoreError, match=r"expected images \(\.avif.*found none"):
        FolderSource(str(tmp_path))


def test_file_name_that_is_not_utf8(tmp_path):
    paint(tmp_path / "a.png")
    try:
        (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(QScoreError, match="not valid UTF-8; rename it"):
        FolderSource(str(tmp_path))


def test_relative_root_gives_relative_locators(classes, monkeypatch):
    monkeypatch.chdir(classes.parent)
    assert FolderSource(classes.name).record(0).path == str(Path(classes.name, "cat", "a.jpg"))
