import errno
import os
from pathlib import Path

import fsspec
import pytest

from qscore._stores import StoreError
from qscore._validate import QScoreError
from qscore.images import files
from qscore.images.files import read_bytes, stamp


@pytest.fixture
def store():
    """A folder of fsspec's object store in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/files/a.bin", b"0123456789")
    yield "memory://files"
    filesystem.rm("/files", recursive=True)


def test_a_file_or_a_part_of_it(tmp_path, store):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    for name in (str(tmp_path / "a.bin"), f"{store}/a.bin"):
        assert read_bytes(name) == b"0123456789"
        assert read_bytes(name, 3) == b"3456789"
        assert read_bytes(name, 3, 4) == b"3456"


def test_missing_files_are_refused(tmp_path, store):
    for name in (str(tmp_path / "b.bin"), f"{store}/b.bin"):
        with pytest.raises(QScoreError, match=r"b\.bin: .*[Nn]o such file") as caught:
            read_bytes(name)
        assert not isinstance(caught.value, StoreError)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.png")
    with pytest.raises(QScoreError, match=r"p\.png: cannot read the image: Not a file"):
        read_bytes(str(tmp_path / "p.png"))


def test_names_that_no_file_can_have():
    with pytest.raises(QScoreError, match="cannot read the image: embedded null"):
        read_bytes("a\0b.png")
    with pytest.raises(QScoreError, match="cannot read the image: File name too long"):
        read_bytes("x" * 5000)
    with pytest.raises(QScoreError, match="no file system for nowhere://"):
        read_bytes("nowhere://a/b.png")


def test_a_file_too_large_for_an_image_is_not_read(tmp_path, store, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 9)
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    for name in (str(tmp_path / "a.bin"), f"{store}/a.bin"):
        with pytest.raises(QScoreError, match="10 bytes are too many for one"):
            read_bytes(name)
        assert read_bytes(name, 2) == b"23456789"


@pytest.mark.parametrize(
    ("number", "beyond"), [(errno.EACCES, False), (errno.ELOOP, False), (errno.EIO, True), (errno.EMFILE, True)]
)
def test_failures_of_the_disk_are_told_from_those_of_a_file(tmp_path, monkeypatch, number, beyond):
    (tmp_path / "a.bin").write_bytes(b"0")

    def fail(self, **_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(QScoreError, match=f"cannot read the image: {os.strerror(number)}") as caught:
        read_bytes(str(tmp_path / "a.bin"))
    assert isinstance(caught.value, StoreError) == beyond


def test_stamps_follow_the_file(tmp_path, store):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    os.utime(tmp_path / "a.bin", ns=(0, 12345))
    assert stamp(str(tmp_path / "a.bin")) == (10, 12345)
    assert stamp(f"{store}/a.bin")[0] == 10
    assert stamp(str(tmp_path / "gone")) == stamp(f"{store}/gone") == stamp("a\0b") == (0, 0)
