"""A folder of image files, with classes in sub-folders or without."""

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import final

import pyarrow as pa
from PIL import Image

from qscore._validate import QScoreError
from qscore.images.decode import read_image
from qscore.images.files import stamp
from qscore.images.sources import ImageRecord, fingerprint_lines

__all__ = ["EXTENSIONS", "FolderSource"]

EXTENSIONS = frozenset(
    "avif bmp gif jfif jp2 jpeg jpg pbm pgm png ppm tif tiff webp".split()  # noqa: SIM905 (shorter to read)
)


@final
class FolderSource:
    """All images below a folder, in the order of their ids.

    An image's id is its path relative to the folder. Where that is ``class/file``, the sub-folder is its label;
    images elsewhere have none. Hidden files and files that are no images by their extension are left out.
    Listing asks for names only: a million files take seconds, whatever their size.

    Parameters
    ----------
    root : str
        The folder.

    Raises
    ------
    QScoreError
        If the folder cannot be listed, or has no images.
    """

    def __init__(self, root: str) -> None:
        self.name = root
        self._root = str(Path(root))
        ids = sorted(_list_images(self._root))
        if not ids:
            kinds = ", ".join(f".{extension}" for extension in sorted(EXTENSIONS))
            raise QScoreError(f"{root}: expected images ({kinds}), found none in this folder")
        self._ids = pa.array(ids, pa.string())  # worker processes share it; a list of strings they would copy
        labels = [_label(id) for id in ids]
        classes = sorted({label for label in labels if label is not None})
        self.labels = labels if classes else None
        self.class_names = classes or None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, sizes and modification times."""
        return fingerprint_lines(f"{id} {stamp(self._path(id))}" for id in self._ids.to_pylist())

    def __len__(self) -> int:
        return len(self._ids)

    def record(self, index: int) -> ImageRecord:
        """Return id, file and label of an image."""
        id = self._ids[index].as_py()
        return ImageRecord(id, self._path(id), _label(id))

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        return read_image(self._path(self._ids[index].as_py()))

    def _path(self, id: str) -> str:
        return id if self._root == "." else f"{self._root.rstrip(os.sep)}{os.sep}{id}"


def _list_images(root: str) -> list[str]:
    """Return the images below a folder by their relative paths, asking for nothing but names and kinds."""
    ids: list[str] = []
    waiting: list[tuple[str, tuple[Path, ...]]] = [("", ())]
    while waiting:
        folder, crossed = waiting.pop()
        try:
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if _is_folder(entry):
                        links = (*crossed, Path(entry.path).parent.resolve()) if entry.is_symlink() else crossed
                        if not (entry.is_symlink() and _leads_back(Path(entry.path).resolve(), links)):
                            waiting.append((f"{folder}{name}/", links))
                    elif name.rpartition(".")[2].lower() in EXTENSIONS and (entry.is_symlink() or entry.is_file()):
                        ids.append(folder + _check_name(name, root))
        except OSError as error:
            where = f"{root}/{folder}".rstrip("/")
            raise QScoreError(f"{where}: cannot list the folder: {error.strerror}") from error
    return ids


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_back(target: Path, links: tuple[Path, ...]) -> bool:
    """Tell whether a link leads to a folder above it, or above a link on the way here: it would be walked forever."""
    return any(target == place or target in place.parents for place in links)


def _check_name(name: str, root: str) -> str:
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise QScoreError(f"{root}: the file name {name!r} is not valid UTF-8; rename it") from error
    return name


def _label(id: str) -> str | None:
    folder, _, name = id.partition("/")
    return sys.intern(folder) if name and "/" not in name else None
