"""A WebDataset tar: members that share a name up to the first dot are one sample, an image and its label."""

import json
import logging
import tarfile
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
from PIL import Image

from qscore._stores import StoreError
from qscore._validate import QScoreError, one_line
from qscore.images.decode import decode_image
from qscore.images.files import find_file, is_uri, read_bytes, stamp
from qscore.images.folder import EXTENSIONS
from qscore.images.sources import ImageRecord, Label, fingerprint_lines

__all__ = ["TarSource"]

log = logging.getLogger(__name__)

LABEL_ENDINGS = ("cls", "json", "txt")
JSON_KEYS = ("label", "cls")
LARGEST_LABEL = 2**20  # bytes
BLOCK = tarfile.BLOCKSIZE


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


@final
class TarSource:
    """The images of one tar file, in their order, read in place: nothing is ever extracted.

    The id of a sample is the tar's name without its ending, a slash and the sample's key. Its label is the content of
    ``KEY.cls``; else ``label`` or ``cls`` in ``KEY.json``, where there is such a file; else the text of ``KEY.txt``.

    Parameters
    ----------
    name : str
        The file, local or a URI.

    Raises
    ------
    QScoreError
        If the file cannot be read, is compressed, truncated or damaged, has no images, or a label is none.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        samples, labels = _list_samples(name)
        if not samples:
            kinds = ", ".join(f".{extension}" for extension in sorted(EXTENSIONS))
            raise QScoreError(f"{name}: expected images ({kinds}), found none in this tar file")
        self._keys = pa.array(samples, pa.string())
        self._members = pa.array([member.name for member in samples.values()], pa.string())
        self._places = np.array([member[1:] for member in samples.values()])  # (n, 2): offset, size
        self.labels = _agreed([labels.get(key) for key in samples])
        names = {label for label in self.labels or [] if isinstance(label, str)}
        self.class_names = sorted(names) or None
        self._stem = name.rpartition("/")[2] if is_uri(name) else Path(name).name
        self._stem = self._stem.removesuffix(".tar")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the tar's size, its modification time, and the names in it."""
        return fingerprint_lines([str(stamp(self.name)), *self._members.to_pylist()])

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where the image of a member's name is."""
        return {name: i for i, name in enumerate(self._members.to_pylist())}

    def __len__(self) -> int:
        return len(self._keys)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        label = None if self.labels is None else self.labels[index]
        id = f"{self._stem}/{self._keys[index].as_py()}"
        return ImageRecord(id, self._locator(index), label)

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        offset, size = self._places[index].tolist()
        return decode_image(read_bytes(self.name, offset, size), self._locator(index))

    def _locator(self, index: int) -> str:
        return f"{self.name}#{self._members[index].as_py()}"


def _list_samples(name: str) -> tuple[dict[str, _Member], dict[str, Label]]:
    """Return images and labels by the key of their sample."""
    samples: dict[str, _Member] = {}
    labels: dict[str, tuple[int, Label]] = {}
    dotted: dict[str, None] = {}
    for member, read in _iter_members(name):
        folder, slash, file = member.name.rpartition("/")
        if file.startswith("."):
            continue
        stem, _, ending = file.partition(".")
        key, ending = folder + slash + stem, ending.lower()
        if ending in EXTENSIONS:
            if key not in samples or samples[key].name == member.name:  # appended again: the later one counts
                samples[key] = member
        elif ending.rpartition(".")[2] in EXTENSIONS:
            dotted[key] = None
        elif ending in LABEL_ENDINGS:
            rank = LABEL_ENDINGS.index(ending)
            if key not in labels or rank <= labels[key][0]:
                labels[key] = rank, _parse_label(read(), ending, f"{name}#{member.name}")
    lost = len(dotted.keys() - samples.keys())
    if lost:
        log.warning("%s: left out %s samples without an image named KEY.ENDING", name, f"{lost:,}")
    return samples, {key: label for key, (_, label) in labels.items()}


def _iter_members(name: str) -> Iterator[tuple[_Member, Any]]:
    """Give each file of a tar, and a function that reads it."""
    try:
        with (
            find_file(name).open() if is_uri(name) else Path(name).open("rb") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            end = -1
            while (info := tar.next()) is not None:
                if tar.offset <= end:
                    raise tarfile.ReadError("its members overlap")
                end = tar.offset
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if info.isreg() and not info.issparse():
                    member = _Member(_clean(info.name), info.offset_data, info.size)
                    yield member, partial(_read_label, file, member, name)
            file.seek(tar.offset)
            if file.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")
    except FileNotFoundError as error:
        raise QScoreError(f"{name}: no such file") from error
    except (QScoreError, StoreError):
        raise
    except Exception as error:  # damaged headers raise nearly anything
        raise QScoreError(
            f"{name}: cannot read this tar file: {one_line(error)}; fetch it again, or decompress it first"
        ) from error


def _clean(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the member name {name!r} is not valid UTF-8") from error
    return name.removeprefix("./")


def _read_label(file: Any, member: _Member, name: str) -> bytes:
    if member.size > LARGEST_LABEL:
        raise QScoreError(f"{name}#{member.name}: expected a label, got {member.size:,} bytes")
    file.seek(member.offset)
    content: bytes = file.read(member.size)
    return content


def _parse_label(content: bytes, ending: str, name: str) -> Label:
    try:
        text = content.decode().strip()
        if ending != "json":
            value: Any = int(text) if ending == "cls" and text.removeprefix("-").isdecimal() else text or None
        else:
            value = json.loads(text)
            if isinstance(value, dict):
                value = next((value[key] for key in JSON_KEYS if key in value), None)
    except (ValueError, RecursionError) as error:
        raise QScoreError(f"{name}: cannot read this label: {one_line(error)}") from error
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise QScoreError(f"{name}: expected a label, an integer or a string, got {type(value).__name__}")
    return value


def _agreed(labels: list[Label]) -> list[Label] | None:
    """Return the labels as one kind: strings, unless all are integers; None where there are none."""
    kinds = {type(label) for label in labels if label is not None}
    if not kinds:
        return None
    if len(kinds) == 1:
        return labels
    return [None if label is None else str(label) for label in labels]
