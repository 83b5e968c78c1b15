"""A WebDataset tar: members that share a name up to the first dot are one sample, an image and its label."""

import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
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
KINDS = {"cls": "integer or short name", "json": "integer or string"}
LARGEST_LABEL = 2**20  # bytes
LONGEST_NAME = 200  # characters: more is no name of a class
INTEGER = re.compile(r"-?[0-9]{1,18}")
BLOCK = tarfile.BLOCKSIZE


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    trouble: str | None
    """Why it cannot be read in place, if so."""


class _Image(NamedTuple):
    member: _Member
    key: str
    plain: bool
    """Whether it is named KEY.ENDING, without more dots."""


@final
class TarSource:
    """The images of one tar file, in their order, read in place: nothing is ever extracted.

    The id of a sample is the tar's name without its ending, a slash and the sample's key; where several images share a
    key, each is a sample, and its name stands for the key. Of ``KEY.jpg`` and ``KEY.seg.png`` the first is taken alone.
    The label is the integer or short name in ``KEY.cls``; else the integer or string ``label`` or ``cls`` in
    ``KEY.json``; else the integer in ``KEY.txt``, if each ``.txt`` in the tar is one: others are captions. A warning
    tells how many images were left out, and of labels ignored.

    Parameters
    ----------
    name : str
        The file, local or a URI.

    Raises
    ------
    QScoreError
        If the file cannot be read, is compressed, truncated or damaged, has no images, or a label is damaged.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        samples, labels = _list_samples(name)
        if not samples:
            kinds = ", ".join(f".{extension}" for extension in sorted(EXTENSIONS))
            raise QScoreError(f"{name}: expected images ({kinds}), found none in this tar file")
        self._keys = pa.array(samples, pa.string())
        self._members = pa.array([member.name for member in samples.values()], pa.string())
        self._places = np.array([(member.offset, member.size) for member in samples.values()])  # (n, 2): offset, size
        self.labels = _agreed(labels)
        names = {label for label in self.labels or [] if isinstance(label, str)}
        self.class_names = sorted(names) or None
        self._stem = name.rpartition("/")[2] if is_uri(name) else Path(name).name
        self._stem = re.sub(r"\.tar$", "", self._stem, flags=re.IGNORECASE)

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


def _list_samples(name: str) -> tuple[dict[str, _Member], list[Label]]:
    """Return the images by their samples' keys, and their labels; warn of each kind of image that is left out."""
    images: dict[str, _Image] = {}
    left_out: Counter[str] = Counter()
    labels = _Labels(name)
    for member, read in _iter_members(name):
        folder, slash, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        key, ending = folder + slash + stem, ending.lower()
        if ending.rpartition(".")[2] in EXTENSIONS:
            reason = "are hidden files" if not stem else member.trouble
            if reason is None and member.name in images:
                left_out["were replaced by a later one of the same name"] += 1
            if reason is None:
                images[member.name] = _Image(member, key, ending in EXTENSIONS)
            elif not file.startswith("._"):  # what macOS puts beside each file is no image
                left_out[reason] += 1
        elif ending in LABEL_ENDINGS and stem and member.trouble is None:
            labels.add(key, ending, read, member.size)
    plain = {image.key for image in images.values() if image.plain}
    kept = [image for image in images.values() if image.plain or image.key not in plain]
    left_out["stand beside an image named KEY.ENDING, as masks do"] += len(images) - len(kept)
    per_key = Counter(image.key for image in kept)
    shared = sum(count for count in per_key.values() if count > 1)
    if shared:
        log.warning("%s: %s images share a key with others: each is a sample, its name the id", name, f"{shared:,}")
    for reason, count in left_out.items():
        if count:
            log.warning("%s: left out %s images that %s", name, f"{count:,}", reason)
    samples = {image.key if per_key[image.key] == 1 else image.member.name: image.member for image in kept}
    found = labels.finish()
    return samples, [found.get(image.key) for image in kept]


class _Labels:
    """Labels by key: of ``.cls`` before ``.json`` before ``.txt``; a later member of a kind replaces an earlier."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[str, dict[str, Label]] = {ending: {} for ending in LABEL_ENDINGS}
        self._ignored: Counter[str] = Counter()

    def add(self, key: str, ending: str, read: Callable[[], bytes], size: int) -> None:
        """Take the label of a member, if it holds one."""
        if ending == "txt" and self._ignored["txt"]:
            return  # there is a caption already: none of them is a label
        locator = f"{self._name}#{key}.{ending}"
        label = None if size > LARGEST_LABEL else PARSERS[ending](read(), locator)
        if isinstance(label, _NoLabel) or size > LARGEST_LABEL:
            self._ignored[ending] += 1
            self._found[ending].pop(key, None)
        else:
            self._found[ending][key] = label

    def finish(self) -> dict[str, Label]:
        """Return the labels, and note what was ignored."""
        for ending in ("cls", "json"):
            if self._ignored[ending]:
                count = f"{self._ignored[ending]:,}"
                log.warning("%s: ignored %s .%s files whose label is no %s", self._name, count, ending, KINDS[ending])
        if self._ignored["txt"]:
            log.warning("%s: ignored the .txt files: not each of them is an integer, so they are captions", self._name)
            self._found["txt"].clear()
        return {key: label for ending in reversed(LABEL_ENDINGS) for key, label in self._found[ending].items()}


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
                if not info.isdir():
                    trouble = _trouble(info)
                    path = info.name if trouble else _clean(info.name)
                    member = _Member(path, info.offset_data, info.size, trouble)
                    yield member, partial(_read_label, file, member)
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


def _trouble(info: tarfile.TarInfo) -> str | None:
    if info.islnk():
        return "are hard links"
    if info.issym():
        return "are symbolic links"
    if info.issparse():
        return "are stored as sparse files"
    return None if info.isreg() else "are no regular files"


def _clean(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the member name {name!r} is not valid UTF-8") from error
    return name.removeprefix("./")


def _read_label(file: Any, member: _Member) -> bytes:
    file.seek(member.offset)
    content: bytes = file.read(member.size)
    return content


@final
class _NoLabel:
    """Stands for content that is something else than a label; None means that there is no label."""


def _parse_class(content: bytes, locator: str) -> Label | _NoLabel:
    try:
        text = content.decode().strip()
    except ValueError as error:
        raise QScoreError(f"{locator}: cannot read this label: {one_line(error)}") from error
    if INTEGER.fullmatch(text):
        return int(text)
    return text or None if text.isprintable() and len(text) <= LONGEST_NAME else _NoLabel()


def _parse_json(content: bytes, locator: str) -> Label | _NoLabel:
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise QScoreError(f"{locator}: cannot read this label: {one_line(error)}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in JSON_KEYS if key in value), None)
    if isinstance(value, str) or value is None:
        return value
    fits = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return value if fits else _NoLabel()


def _parse_text(content: bytes, _locator: str) -> Label | _NoLabel:
    text = content.decode(errors="replace").strip()
    return int(text) if INTEGER.fullmatch(text) else _NoLabel()


PARSERS = {"cls": _parse_class, "json": _parse_json, "txt": _parse_text}


def _agreed(labels: list[Label]) -> list[Label] | None:
    """Return the labels as one kind: strings, unless all are integers; None where there are none."""
    kinds = {type(label) for label in labels if label is not None}
    if not kinds:
        return None
    if len(kinds) == 1:
        return labels
    return [None if label is None else str(label) for label in labels]
