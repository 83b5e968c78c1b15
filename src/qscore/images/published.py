"""Published data sets by name: ``torchvision:CIFAR10/test`` and ``hf:ylecun/mnist:test``."""

import inspect
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from PIL import Image

from qscore._validate import QScoreError, nearest, one_line, require
from qscore.images.decode import decode_image, to_rgb
from qscore.images.files import read_bytes
from qscore.images.sources import ImageRecord, Label, fingerprint_lines

__all__ = ["HubSource", "TorchvisionSource"]

ROOT = "QSCORE_TORCHVISION_ROOT"
DOWNLOAD = "QSCORE_DOWNLOAD"
FOLDERS = ("ImageFolder", "DatasetFolder")  # whose images may change, and stand upside down
DEFAULT_ROOT = "~/.cache/qscore/torchvision"
PLAIN = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "string", "large_string")


@final
class TorchvisionSource:
    """A data set of ``torchvision.datasets``, by its class's name and, after a slash, its split.

    The files are looked for in the folder that the environment variable ``QSCORE_TORCHVISION_ROOT`` names, by default
    ``~/.cache/qscore/torchvision``, and downloaded only where ``QSCORE_DOWNLOAD=1`` asks for it. A copy sent to
    another process carries the name only.

    Parameters
    ----------
    name : str
        E.g. ``"torchvision:CIFAR10/test"``; without a split, the data set's own default, which is training.

    Raises
    ------
    QScoreError
        If there is no such data set or split, its files are absent or damaged, or torchvision is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        kind, _, split = name.removeprefix("torchvision:").partition("/")
        self._images, self._title = _open_torchvision(name, kind, split)
        self.labels, self.class_names = _named(_targets(self._images), getattr(self._images, "classes", None))

    def __reduce__(self) -> tuple[type["TorchvisionSource"], tuple[str]]:
        return TorchvisionSource, (self.name,)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, split and labels: published data sets do not change."""
        return fingerprint_lines([self._title, str(len(self)), *map(str, self.labels or [])])

    def __len__(self) -> int:
        return len(self._images)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        label = None if self.labels is None else self.labels[index]
        return ImageRecord(f"{self._title}#{index}", f"torchvision:{self._title}#{index}", label)

    def image(self, index: int) -> Image.Image:
        """Return an image in RGB."""
        try:
            return to_rgb(self._images[index][0])
        except Exception as error:  # its own loaders raise nearly anything on damaged files
            raise QScoreError(f"{self.name}#{index}: cannot read the image: {one_line(error)}") from error


def _open_torchvision(name: str, kind: str, split: str) -> tuple[Any, str]:
    """Return the data set, and its name with the split in it."""
    datasets = require("torchvision.datasets", "vision")
    known = [entry for entry in datasets.__all__ if "root" in _parameters(getattr(datasets, entry))]
    if kind not in known:
        raise QScoreError(f"{name}: torchvision has no image data set {kind!r}{nearest(kind, known)}")
    if kind in FOLDERS:
        raise QScoreError(f"{name}: {kind} is any folder of images, not a published data set; name the folder itself")
    parameters = _parameters(getattr(datasets, kind))
    options: dict[str, Any] = {}
    if "train" in parameters:
        if split not in ("", "train", "test"):
            raise QScoreError(f"{name}: expected the split train or test, got {split!r}")
        split = split or "train"
        options["train"] = split == "train"
    elif "split" in parameters:
        if not split and parameters["split"].default is inspect.Parameter.empty:
            splits = ", ".join(map(str, getattr(getattr(datasets, kind), "splits", ()))) or "SPLIT"
            raise QScoreError(f"{name}: expected a split, {name.rstrip('/')}/ and one of {splits}; got none")
        split = split or str(parameters["split"].default)
        options["split"] = split
    elif split:
        raise QScoreError(f"{name}: {kind} has no splits; leave out '/{split}'")
    if "download" in parameters:
        options["download"] = os.environ.get(DOWNLOAD, "") not in ("", "0")
    root = Path(os.environ.get(ROOT, DEFAULT_ROOT)).expanduser()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks for its own developers
            images = getattr(datasets, kind)(root=str(root), **options)
        len(images)
    except Exception as error:  # each data set has ways of its own to say that its files are absent
        raise QScoreError(
            f"{name}: cannot open this data set in {root} ({one_line(error)}); set {ROOT} to the folder that holds it, "
            f"or {DOWNLOAD}=1 to download it"
        ) from error
    return images, f"{kind}/{split}" if split else kind


def _parameters(dataset: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(dataset).parameters)


def _targets(images: Any) -> list[Any] | None:
    """Find the labels, which torchvision's data sets keep under many names, without decoding an image.

    Some keep the path of each image's annotation there: strings count only where they are names of classes.
    """
    n = len(images)
    classes = getattr(images, "classes", None)
    names = {name for name in classes if isinstance(name, str)} if isinstance(classes, Sequence) else set()

    def fit(values: Sequence[Any]) -> bool:
        return len(values) == n and all(isinstance(v, int) or (isinstance(v, str) and v in names) for v in values)

    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(images, attribute, None)
        values = values.tolist() if values is not None and hasattr(values, "tolist") else values
        if isinstance(values, Sequence) and fit(values):
            return list(values)
    for attribute in ("samples", "_samples", "imgs"):
        pairs = getattr(images, attribute, None)
        if isinstance(pairs, Sequence) and fit(values := [pair[-1] for pair in pairs]):
            return values
    return None


def _named(values: list[Any] | None, classes: Any) -> tuple[list[Label] | None, list[str] | None]:
    """Return labels by the names of their classes, where there are names; negative numbers mean no label."""
    if values is None or all(value is None for value in values):
        return None, None
    if all(isinstance(value, str | None) for value in values):
        return values, sorted({value for value in values if value is not None})
    values = [None if value is None or int(value) < 0 else int(value) for value in values]
    highest = max((value for value in values if value is not None), default=-1)
    if highest < 0:
        return None, None
    if not isinstance(classes, Sequence) or highest >= len(classes):
        return values, None
    names = [name if isinstance(name, str) else " ".join(map(str, name)) for name in classes]
    return [None if value is None else names[value] for value in values], names


@final
class HubSource:
    """A data set of the Hugging Face hub, or a local folder in its formats, opened by the package ``datasets``.

    Parameters
    ----------
    name : str
        ``"hf:NAME"``, ``"hf:NAME:SPLIT"`` or ``"hf:NAME:CONFIG:SPLIT"``; the split is ``train`` unless it is given.

    Raises
    ------
    QScoreError
        If ``datasets`` is not installed, the data set or the split cannot be had, or it has no images.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        path, *rest = name.removeprefix("hf:").split(":")
        if not path or len(rest) > 2:
            raise QScoreError(f"{name}: expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
        self._split = rest[-1] if rest else "train"
        config = rest[0] if len(rest) == 2 else None
        self._rows = _open_hub(name, path, config, self._split)
        self._column, labels = _find_columns(self._rows, name)
        self.labels, self.class_names = None, None
        if labels is not None:
            classes = getattr(self._rows.features[labels], "names", None)
            self.labels, self.class_names = _named(self._rows[labels][:], classes)
        datasets = require("datasets", "hf")
        self._rows = self._rows.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprint that ``datasets`` keeps, and the labels."""
        return fingerprint_lines([str(self._rows._fingerprint), *map(str, self.labels or [])])

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        label = None if self.labels is None else self.labels[index]
        return ImageRecord(f"{self._split}#{index}", f"{self.name}#{index}", label)

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        entry = self._rows[index][self._column] or {}
        name = f"{self.name}#{index}"
        if entry.get("bytes") is None and entry.get("path") is None:
            raise QScoreError(f"{name}: expected an image, got an empty cell")
        data = entry["bytes"] if entry["bytes"] is not None else read_bytes(entry["path"])
        return decode_image(data, name)


def _open_hub(name: str, path: str, config: str | None, split: str) -> Any:
    datasets = require("datasets", "hf")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = Path(path, split if Path(path, "dataset_dict.json").is_file() else "")
            if (saved / "state.json").is_file():  # by save_to_disk, which load_dataset does not read
                return datasets.load_from_disk(str(saved))
            return datasets.load_dataset(path, config, split=split)
    except Exception as error:  # no network, no such name, no access, no such split, code that would have to run
        raise QScoreError(
            f"{name}: cannot load this data set: {one_line(error)}; check the name, the split and the network, "
            "or name a local folder"
        ) from error


def _find_columns(rows: Any, name: str) -> tuple[str, str | None]:
    """Return the names of the image column and of the label column, if there is one."""
    kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    if not images:
        raise QScoreError(f"{name}: expected a column of images, got {', '.join(kinds)}")
    classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    plain = [column for column in ("label", "labels") if getattr(rows.features.get(column), "dtype", "") in PLAIN]
    return images[0], next(iter(classes + plain), None)
