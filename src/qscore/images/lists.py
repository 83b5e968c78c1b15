"""A CSV or Parquet list of images: columns ``path``, and if there ``id`` and ``label``."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from qscore._validate import QScoreError, nearest, one_line
from qscore.images.files import find_file, is_uri, stamp
from qscore.images.sources import ImageRecord, check_unique, fingerprint_lines

__all__ = ["ListSource"]

COLUMNS = ("path", "id", "label")
BY_NAME = ("digits#", "shapes#", "shapes:", "torchvision:", "hf:")  # locators that are no files
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"  # without leading zeros, which names have and numbers lose


@final
class ListSource:
    """The images that a CSV or Parquet file names, in its order.

    Relative paths start at the list's own folder; beside files and URIs, anything that `open_image` reopens will do.
    Ids default to the paths as they are written. Labels are integers where all of them are, otherwise strings.

    Parameters
    ----------
    name : str
        The list, ending in ``.csv`` or ``.parquet``, local or a URI.
    read : callable
        Opens one image by its locator.

    Raises
    ------
    QScoreError
        If the list cannot be read, has no column ``path``, no rows or empty paths, or an id comes twice.
    """

    def __init__(self, name: str, read: Callable[[str], Image.Image]) -> None:
        self.name = name
        self._read = read
        table = _read_list(name)
        written = _strings(table, "path", name)
        self._ids = _strings(table, "id", name) if "id" in table.column_names else written
        check_unique(self._ids.to_pylist(), name)
        folder = name.rpartition("/")[0] if is_uri(name) else Path(name).parent
        self._paths = pa.array([_resolve(path, folder) for path in written.to_pylist()], pa.string())
        self.labels = _labels(table.column("label"), name) if "label" in table.column_names else None
        names = {label for label in self.labels or [] if isinstance(label, str)}
        self.class_names = sorted(names) or None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and paths, and sizes and modification times of local files, archives and tars."""
        rows = zip(self._ids.to_pylist(), self._paths.to_pylist(), strict=True)
        containers: dict[str, tuple[int, int]] = {}
        # A store takes a request for each file: only local ones are asked for.
        return fingerprint_lines(
            f"{id} {path} {None if is_uri(path) else _stamp(path, containers)}" for id, path in rows
        )

    def __len__(self) -> int:
        return len(self._ids)

    def record(self, index: int) -> ImageRecord:
        """Return id, locator and label of an image."""
        label = None if self.labels is None else self.labels[index]
        return ImageRecord(self._ids[index].as_py(), self._paths[index].as_py(), label)

    def image(self, index: int) -> Image.Image:
        """Return an image, upright and in RGB."""
        return self._read(self._paths[index].as_py())


def _read_list(name: str) -> pa.Table:
    try:
        with find_file(name).open() as file:
            if name.lower().endswith(".parquet"):
                parquet = pq.ParquetFile(file)
                _check_columns(parquet.schema_arrow.names, name)
                table = parquet.read(columns=[c for c in COLUMNS if c in parquet.schema_arrow.names])
            else:
                table = _read_csv(file, name)
    except FileNotFoundError as error:
        raise QScoreError(f"{name}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise QScoreError(f"{name}: cannot read this list of images: {one_line(error)}") from error
    if table.num_rows == 0:
        raise QScoreError(f"{name}: expected at least one image, got an empty list")
    for i, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type  # a category of pandas
        kind = pa.string() if pa.types.is_string_view(kind) else kind  # as Polars writes them
        if kind != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(kind))
    return table


def _read_csv(file: Any, name: str) -> pa.Table:
    # All columns as strings: a folder of names like 0012 is none of numbers.
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    table = pyarrow.csv.read_csv(file, convert_options=options)
    _check_columns(table.column_names, name)
    table = table.select([c for c in COLUMNS if c in table.column_names])
    if "label" in table.column_names:
        labels = table.column("label")
        if pc.all(pc.match_substring_regex(labels, INTEGER)).as_py():
            table = table.set_column(table.column_names.index("label"), "label", labels.cast(pa.int64()))
    return table


def _check_columns(columns: list[str], name: str) -> None:
    if "path" not in columns:
        found = ", ".join(map(repr, columns[:10]))
        raise QScoreError(f"{name}: expected a column 'path', got {found}{nearest('path', columns)}")
    for column in COLUMNS:
        if columns.count(column) > 1:
            raise QScoreError(f"{name}: expected one column {column!r}, got {columns.count(column)}")


def _strings(table: pa.Table, column: str, name: str) -> pa.Array:
    values = table.column(column)
    if not any(is_kind(values.type) for is_kind in (pa.types.is_string, pa.types.is_large_string)) and (
        column == "path" or not pa.types.is_integer(values.type)
    ):
        raise QScoreError(f"{name}: expected strings in the column {column!r}, got {values.type}")
    strings = pa.concat_arrays(values.cast(pa.string()).chunks)
    missing = pc.fill_null(pc.equal(strings, ""), True)
    if pc.any(missing).as_py():
        row = pc.index(missing, True).as_py()
        raise QScoreError(f"{name}: the {column} of row {row + 1} is empty; fill it in, or leave the row out")
    return strings


def _labels(column: pa.ChunkedArray, name: str) -> list[Any] | None:
    kind = column.type
    known = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in known):
        raise QScoreError(f"{name}: expected labels as integers or strings, got {kind}")
    return None if column.null_count == len(column) else column.to_pylist()


def _stamp(path: str, containers: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the stamp of a file, or of what holds the image: ``a.npz`` of ``a.npz#17``."""
    found = stamp(path)
    while not any(found) and "#" in path:
        path = path.rpartition("#")[0]
        if path not in containers:
            containers[path] = stamp(path)
        found = containers[path]
    return found


def _resolve(path: str, folder: str | Path) -> str:
    if is_uri(path) or Path(path).is_absolute() or path.startswith(BY_NAME):
        return path
    return f"{folder}/{path}" if isinstance(folder, str) else str(folder / path)
