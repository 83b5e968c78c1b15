"""A NumPy archive of encoded images: ``data`` holds the files end to end, ``offsets`` where each begins."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qscore._validate import QScoreError
from qscore.images.decode import decode_image
from qscore.images.sources import ImageRecord, Label, check_unique, fingerprint_lines

__all__ = ["ArchiveSource"]

PREFIXES = ("", "image_")
OPTIONAL = ("labels", "ids", "class_names")
LARGEST_RATIO, SLACK = 20, 1 << 26  # encoded images hardly compress: more than that is a bomb


@final
class ArchiveSource:
    """The images of one ``.npz`` file.

    Expected are the arrays ``data`` (uint8, encoded image files end to end) and ``offsets`` (n + 1 integers), or
    ``image_data`` and ``image_offsets``; ``labels`` (n integers or strings), ``ids`` (n) and ``class_names`` may be
    there. Nothing is ever unpickled. A copy sent to another process carries the path only and reads the file anew.

    Parameters
    ----------
    path : str
        The file.
    prefixes : tuple of str
        What may stand before ``data`` and ``offsets``.

    Raises
    ------
    QScoreError
        If the file is damaged or a zip bomb, an array is missing, or the arrays contradict each other.
    """

    def __init__(self, path: str, prefixes: tuple[str, ...] = PREFIXES) -> None:
        self.name = path
        self._prefixes = prefixes
        arrays, checksum = _read(path, prefixes)
        prefix = next((p for p in prefixes if {p + "data", p + "offsets"} <= arrays.keys()), None)
        if prefix is None:
            expected = ", or ".join(f"'{p}data' and '{p}offsets'" for p in prefixes)
            raise QScoreError(
                f"{path}: expected the arrays {expected}, got {', '.join(map(repr, sorted(arrays))) or 'none'}"
            )
        self._data = arrays[prefix + "data"]
        self._offsets = arrays[prefix + "offsets"]
        _check_offsets(self._data, self._offsets, path)
        self.labels, self.class_names = _labels(arrays, len(self), path)
        self._ids = _ids(arrays, len(self), path)
        self.fingerprint = fingerprint_lines([checksum, *self._ids])

    def __reduce__(self) -> tuple[type["ArchiveSource"], tuple[str, tuple[str, ...]]]:
        return ArchiveSource, (self.name, self._prefixes)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        label = None if self.labels is None else self.labels[index]
        return ImageRecord(self._ids[index], f"{self.name}#{index}", label)

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        return decode_image(self.encoded(index), f"{self.name}#{index}")

    def encoded(self, index: int) -> bytes:
        """Return the file of an image, as it is stored."""
        data: bytes = self._data[self._offsets[index] : self._offsets[index + 1]].tobytes()
        return data


def _read(path: str, prefixes: tuple[str, ...]) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the arrays in question, and a SHA-256 of the checksums that the file holds of them."""
    wanted = {prefix + name for prefix in prefixes for name in ("data", "offsets")} | set(OPTIONAL)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        _check_unpacked(sum(m.file_size for m in members if m.filename.removesuffix(".npy") in wanted), path)
        checksums = sorted(f"{m.filename} {m.CRC} {m.file_size}" for m in members)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in wanted}
    except FileNotFoundError as error:
        raise QScoreError(f"{path}: no such file") from error
    except QScoreError:
        raise
    except Exception as error:  # a damaged zip or array header raises nearly anything
        reason = "it holds Python objects, which are never unpickled" if "allow_pickle" in str(error) else str(error)
        raise QScoreError(f"{path}: cannot read this .npz archive: {reason}") from error
    return arrays, hashlib.sha256("\n".join(checksums).encode()).hexdigest()


def _check_unpacked(unpacked: int, path: str) -> None:
    """Refuse by what the file says of itself, before anything is decompressed."""
    size = Path(path).stat().st_size
    if unpacked > LARGEST_RATIO * size + SLACK:
        raise QScoreError(f"{path}: {size:,} bytes that unpack to {unpacked:,}: a zip bomb, not images; leave it out")


def _check_offsets(data: NDArray[Any], offsets: NDArray[Any], path: str) -> None:
    if data.ndim != 1 or data.dtype != np.uint8:
        raise QScoreError(f"{path}: expected image data as 1-D uint8, got {data.dtype} of shape {data.shape}")
    if offsets.ndim != 1 or len(offsets) < 2 or not np.issubdtype(offsets.dtype, np.integer):
        raise QScoreError(
            f"{path}: expected offsets as n + 1 integers, n >= 1, got {offsets.dtype} of shape {offsets.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != len(data) or (offsets[1:] < offsets[:-1]).any():
        raise QScoreError(
            f"{path}: expected offsets rising from 0 to {len(data)}, the size of the image data, got offsets from "
            f"{offsets[0]} to {offsets[-1]}{'' if (offsets[1:] >= offsets[:-1]).all() else ' that also fall'}"
        )


def _ids(arrays: Mapping[str, NDArray[Any]], n: int, path: str) -> list[str]:
    if "ids" not in arrays:
        return [f"{Path(path).stem}#{i}" for i in range(n)]
    _check_length(arrays["ids"], "ids", n, path)
    ids = [id.decode(errors="replace") if isinstance(id, bytes) else str(id) for id in arrays["ids"].tolist()]
    check_unique(ids, path)
    return ids


def _labels(arrays: Mapping[str, NDArray[Any]], n: int, path: str) -> tuple[list[Label] | None, list[str] | None]:
    if "labels" not in arrays:
        return None, None
    labels = arrays["labels"]
    _check_length(labels, "labels", n, path)
    if labels.dtype.kind == "U":
        return labels.tolist(), sorted(set(labels.tolist()))
    if labels.dtype.kind not in "iu":
        raise QScoreError(f"{path}: expected labels as integers or strings, got {labels.dtype}")
    if "class_names" not in arrays:
        return labels.tolist(), None
    names = [str(name) for name in np.atleast_1d(arrays["class_names"]).tolist()]
    if labels.min() < 0 or labels.max() >= len(names):
        raise QScoreError(
            f"{path}: expected labels from 0 to {len(names) - 1} for {len(names)} class names, "
            f"got {labels.min()} to {labels.max()}"
        )
    return [names[label] for label in labels.tolist()], names


def _check_length(array: NDArray[Any], name: str, n: int, path: str) -> None:
    if array.shape != (n,):
        raise QScoreError(f"{path}: expected {name} of shape ({n},), one for each image, got {array.shape}")
