"""Salient ImageNet: soft masks of a robust network's features, core or spurious by what five people answered."""

import ast
import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import final

import numpy as np
from jaxtyping import Float

from qscore._validate import QScoreError, nearest, one_line
from qscore.encoders import Preprocessing
from qscore.explain.grey import check_mask, read_mask
from qscore.images import ImageRecord
from qscore.images.files import read_bytes

__all__ = ["SalientMasks", "is_salient", "read_answers", "read_classes"]

CLASSES, ANSWERS = "wordnet_dict.py", "discover_spurious_features.csv"
LARGEST_DICT = 1 << 20  # bytes; that of a thousand classes takes 30,000
WNID = re.compile(r"n\d{8}")
COLUMNS = ("Input.wordnet_id", "Input.class_index", "Input.feature_index", "Answer.main")
SPURIOUS = {"main_object": False, "separate_object": True, "background": True}
WORKERS, MAJORITY = 5, 3
# What the network saw that the masks are of.
FRAME = Preprocessing(crop=224, resize=256)


def is_salient(name: str) -> bool:
    """Tell whether a folder is Salient ImageNet's."""
    return (Path(name) / CLASSES).is_file()


def read_classes(path: Path) -> dict[int, str]:
    """Read class indices and WordNet ids out of a file that holds a literal; nothing in it is ever run.

    Raises
    ------
    QScoreError
        If it holds anything else.
    """
    try:
        if path.stat().st_size > LARGEST_DICT:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        classes = ast.literal_eval(path.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise QScoreError(f"{path}: cannot read the classes: {error.strerror}") from error
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise QScoreError(
            f"{path}: expected the literal of a dict, class index to WordNet id, and nothing else ({one_line(error)}); "
            "nothing in it was run"
        ) from error
    if not isinstance(classes, dict) or not classes:
        raise QScoreError(
            f"{path}: expected the literal of a dict, class index to WordNet id, got {type(classes).__name__}"
        )
    for index, wnid in classes.items():
        if (
            isinstance(index, bool)
            or not isinstance(index, int)
            or not isinstance(wnid, str)
            or not WNID.fullmatch(wnid)
        ):
            raise QScoreError(
                f"{path}: expected class indices and WordNet ids such as 0: 'n01440764', got {index!r}: {wnid!r}"
            )
    return classes


def read_answers(path: Path, classes: dict[int, str]) -> dict[tuple[str, int], bool]:
    """Read the workers' answers, and tell for each class and feature whether the feature is spurious.

    It is where at least three of the five answers are ``separate_object`` or ``background``, else core.

    Parameters
    ----------
    path : Path
        ``discover_spurious_features.csv``.
    classes : dict
        As `read_classes` gives them.

    Raises
    ------
    QScoreError
        If columns are missing, a value is none that the column has, or a feature has not five answers.
    """
    votes: dict[tuple[str, int], list[bool]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or [])]
            if missing:
                found = ", ".join(rows.fieldnames or []) or "nothing"
                raise QScoreError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {found}")
            for row in rows:
                key, spurious = _answer(row, classes, f"{path}, line {rows.line_num}")
                votes[key].append(spurious)
    except FileNotFoundError as error:
        raise QScoreError(
            f"{path}: no such file; it comes with Salient ImageNet's code, in mturk_results/: put it beside {CLASSES}"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise QScoreError(f"{path}: cannot read the answers: {one_line(error)}") from error
    for (wnid, feature), answers in votes.items():
        if len(answers) != WORKERS:
            raise QScoreError(
                f"{path}: expected {WORKERS} answers for each class and feature, got {len(answers)} for {wnid}, "
                f"feature {feature}"
            )
    return {key: sum(answers) >= MAJORITY for key, answers in votes.items()}


def _answer(row: dict[str, str], classes: dict[int, str], where: str) -> tuple[tuple[str, int], bool]:
    wnid, index, feature, answer = (row[column] for column in COLUMNS)
    if not all(isinstance(value, str) and value.isdecimal() for value in (index, feature)):
        raise QScoreError(f"{where}: expected whole numbers as class and feature, got {index!r} and {feature!r}")
    if classes.get(int(index)) != wnid:
        raise QScoreError(
            f"{where}: expected class {index} to be {classes.get(int(index))!r} as in {CLASSES}, got {wnid!r}"
        )
    if answer not in SPURIOUS:
        raise QScoreError(
            f"{where}: expected one of {', '.join(SPURIOUS)}, got {answer!r}{nearest(str(answer), SPURIOUS)}"
        )
    return (wnid, int(feature)), SPURIOUS[answer]


@final
class SalientMasks:
    """The masks of Salient ImageNet, of either release; several features of one kind make one mask, the largest value.

    Images are matched by the WordNet id in their path, label or id, and by their name without the ending; only some
    images of each class have masks. A mask of the image's size goes through the encoder's geometry with it; one of
    224 pixels, where the image has others, lies in the image resized to 256 and cropped, and is cut to the encoder's
    crop from there, once.

    Parameters
    ----------
    name : str
        The folder, with ``wordnet_dict.py``, ``discover_spurious_features.csv`` and a folder for each class.

    Raises
    ------
    QScoreError
        If a file is missing or malformed.
    """

    kinds = ("core", "spurious")
    frame = FRAME

    def __init__(self, name: str) -> None:
        self.name = name
        self._root = Path(name)
        self._classes = read_classes(self._root / CLASSES)
        self._known = set(self._classes.values())
        self._listings: dict[str, dict[str, tuple[int, ...]]] = {}

    @cached_property
    def _spurious(self) -> dict[tuple[str, int], bool]:
        return read_answers(self._root / ANSWERS, self._classes)

    def find(self, record: ImageRecord) -> bool:
        """Tell whether an image has a mask.

        Raises
        ------
        QScoreError
            If its class is none of Salient ImageNet's.
        """
        wnid, stem = self._place(record)
        return stem in self._features(wnid)

    def unused(self, records: Sequence[ImageRecord]) -> None:
        """Return nothing: most images of ImageNet have no masks, and a part of it does not use all."""
        return

    def read(self, record: ImageRecord) -> dict[str, Float[np.ndarray, "h w"]]:
        """Return an image's masks in [0, 1], by kind."""
        wnid, stem = self._place(record)
        masks: dict[str, Float[np.ndarray, "h w"]] = {}
        for feature in self._features(wnid).get(stem, ()):
            if (wnid, feature) not in self._spurious:
                raise QScoreError(f"{self._root / ANSWERS}: expected answers for {wnid}, feature {feature}, got none")
            path = _mask_file(self._root / wnid / f"feature_{feature}", stem)
            mask = read_mask(read_bytes(str(path)), str(path), check=False)
            kind = "spurious" if self._spurious[wnid, feature] else "core"
            if kind in masks and masks[kind].shape != mask.shape:
                sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (masks[kind].shape, mask.shape))
                raise QScoreError(f"{path}: expected all masks of an image to have one size, got {sizes} pixels")
            masks[kind] = np.maximum(masks[kind], mask) if kind in masks else mask
        for kind, mask in masks.items():
            check_mask(mask, f"{self.name}, {kind} mask of {record.id!r}")
        return masks

    def _features(self, wnid: str) -> dict[str, tuple[int, ...]]:
        """Return the features that each image of a class has masks of."""
        if wnid not in self._listings:
            self._listings[wnid] = _read_listing(self._root / wnid)
        return self._listings[wnid]

    def _place(self, record: ImageRecord) -> tuple[str, str]:
        """Return an image's class and name."""
        stem = PurePath(record.id).stem
        label = record.label if isinstance(record.label, str) else ""
        parts = [
            label,
            *reversed(PurePath(record.id).parts[:-1]),
            *reversed(PurePath(record.path).parts[:-1]),
            stem[:9],
        ]
        named = [part for part in parts if WNID.fullmatch(part)]
        if not named:
            raise QScoreError(
                f"{record.id}: expected a WordNet id such as n01440764 as label, folder or beginning of the name, to "
                f"find its class in {self.name}; got none"
            )
        if named[0] not in self._known:
            raise QScoreError(f"{record.id}: unknown WordNet id {named[0]!r}: {self._root / CLASSES} has no such class")
        return named[0], stem


def _read_listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the features that each image of a class has masks of, by the listing of either release."""
    path = next(
        (folder / name for name in ("image_names_map.csv", "image_fnames.csv") if (folder / name).is_file()), None
    )
    if path is None:
        if folder.is_dir():
            raise QScoreError(f"{folder}: expected image_names_map.csv or image_fnames.csv, found neither")
        return {}  # a class whose masks were not fetched
    features: dict[str, list[int]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise QScoreError(f"{path}: cannot read this list of images: {one_line(error)}") from error
    columns = [(i, int(name)) for i, name in enumerate(header) if name.strip().isdecimal()]
    if not columns or len(columns) < len([name for name in header if name.strip()]):
        raise QScoreError(
            f"{path}: expected a column for each feature index, got {', '.join(map(repr, header)) or 'nothing'}"
        )
    for row in rows:
        for i, feature in columns:
            if i < len(row) and row[i].strip():
                features[PurePath(row[i].strip()).stem].append(feature)
    return {stem: tuple(found) for stem, found in features.items()}


def _mask_file(folder: Path, stem: str) -> Path:
    places = [folder / f"{stem}.JPEG", folder / "cams" / f"{stem}.jpeg"]
    for path in places:
        if path.is_file():
            return path
    raise QScoreError(f"{places[0]}: the list names this mask, and there is none")
