"""Tensors, and nothing but tensors, out of files by others: whatever code they hold never runs."""

import _compat_pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch.serialization import (
    MAGIC_NUMBER,
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
    safe_globals,
)

from qscore._files import sha256
from qscore._validate import QScoreError

__all__ = ["Contents", "Foreign", "read_checkpoint", "read_metadata"]

LEGACY_PICKLES = 5  # magic number, protocol version, system information, contents, storage keys
LARGEST_RATIO, SLACK = 20, 1 << 26  # weights hardly compress: more than that is a bomb
PARTS_OF_TENSORS = re.compile(r"torch\._utils\.\w+|torch\.(\w+\.)?\w*(Storage|Tensor)|collections\.OrderedDict")
SAFER = "ask its publisher for a state_dict, saved with torch.save(model.state_dict(), ...) or as safetensors"
NO_CHECKPOINT = {
    b"<": "a web page or other text, not weights: the download failed; fetch the file again",
    b"{": "JSON text, not weights: the download failed, or this is a description; give the weights' file",
    b"version https://git-lfs": "a Git LFS pointer, not weights: fetch the file itself with 'git lfs pull'",
    b"\x1f\x8b": "a gzip archive: unpack it, and give the weights inside",
}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds."""

    tree: Any
    """Nested mappings and lists of tensors, numbers and texts; anything else is a `Foreign` object."""
    sha256: str
    """Of the file, in hexadecimal."""
    foreign: tuple[str, ...] = ()
    """Full names of the classes for which inert objects stand in, sorted."""


class _Inert(type):
    """Makes stand-ins that refuse to be called: a pickle that calls something wants code to run."""

    name: str

    def __call__(cls, *_args: Any, **_options: Any) -> Any:
        if cls.name in DATA:
            return DATA[cls.name](cls)
        raise QScoreError(f"the file asks to call {cls.name}, and files that run code are refused; {SAFER}")


class Foreign(metaclass=_Inert):
    """Stands in for an object of any class that is no tensor; keeps its state as plain data."""

    state: Any = None

    def __new__(cls, *_args: Any) -> "Foreign":
        """Make the object as unpickling does, without a call."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Keep the state; it is looked through for hints, no more."""
        self.state = state


# Plain data that pickle stores as a call.
DATA: dict[str, Callable[[type], Any]] = {
    "collections.defaultdict": lambda _: OrderedDict(),
    "collections.deque": lambda _: [],
} | dict.fromkeys(
    [
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"pathlib.{name}" for name in ("PosixPath", "PurePosixPath", "WindowsPath", "Path")),
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        *("numpy.dtype", "numpy.ndarray", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    ],
    object.__new__,
)


def read_checkpoint(path: Path) -> Contents:
    """Read a file that `torch.save` wrote, in either of its formats, or a safetensors file.

    Raises
    ------
    QScoreError
        If it is neither, is damaged, or cannot be read without running code.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
            _check_kind(path, head)
            if head[8:9] == b"{":
                return Contents(_read_safetensors(path), sha256(path))
            with _nothing_allowed():
                names = _list_foreign(path, stream, zipped=head[:2] == b"PK")
                return Contents(_unpickle(path, names), sha256(path), tuple(names))
    except OSError as error:
        raise QScoreError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for any other file."""
    try:
        with path.open("rb") as stream:
            if stream.read(9)[8:] != b"{":
                return {}
        with safetensors.safe_open(path, framework="pt") as archive:
            return dict(archive.metadata() or {})
    except (OSError, safetensors.SafetensorError, ValueError):
        return {}


@contextmanager
def _nothing_allowed() -> Iterator[None]:
    """Suspend what libraries and callers let torch unpickle: a file may not call that either."""
    allowed = get_safe_globals()
    clear_safe_globals()
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(allowed)


def _check_kind(path: Path, head: bytes) -> None:
    if not head:
        raise QScoreError(f"{path}: an empty file; fetch it again")
    text = head.lstrip()
    for start, what in NO_CHECKPOINT.items():
        if text.startswith(start) and head[8:9] != b"{":
            raise QScoreError(f"{path}: {what}")
    if head[257:262] == b"ustar":
        raise QScoreError(
            f"{path}: a tar archive, torch's oldest format, which cannot be read without running code; {SAFER}"
        )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise QScoreError(f"{path}: expected safetensors, got a file that is damaged: {_first_line(error)}") from error


def _list_foreign(path: Path, stream: BinaryIO, *, zipped: bool) -> list[str]:
    """Name whatever the pickles refer to that is neither a tensor nor plain data, without unpickling."""
    try:
        if zipped:
            _check_archive(path, stream)
            return sorted(get_unsafe_globals_in_checkpoint(path))
        stream.seek(0)
        return sorted(_list_legacy_globals(path, stream))
    except (QScoreError, OSError):
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise QScoreError(
            f"{path}: expected a checkpoint by torch.save or safetensors, got a file that is damaged, truncated or of "
            f"another kind ({_first_line(error)}); fetch it again"
        ) from error


def _check_archive(path: Path, stream: BinaryIO) -> None:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
    unpacked, size = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > LARGEST_RATIO * size + SLACK:
        raise QScoreError(f"{path}: {size:,} bytes that unpack to {unpacked:,}: a zip bomb, not weights")
    names = {Path(member.filename).name for member in members}
    if "constants.pkl" in names:
        raise QScoreError(f"{path}: a TorchScript archive, which is code; {SAFER}")
    if "data.pkl" not in names:
        raise QScoreError(
            f"{path}: a zip archive that torch.save did not write; unpack it, and give the weights inside"
        )


def _list_legacy_globals(path: Path, stream: BinaryIO) -> Iterable[str]:
    found: set[str] = set()
    for k in range(LEGACY_PICKLES):
        for opcode, argument, _ in pickletools.genops(stream):
            if k == 0 and opcode.name in ("LONG1", "STOP") and argument != MAGIC_NUMBER:
                raise QScoreError(
                    f"{path}: a pickle that torch.save did not write, and reading it may run any code; {SAFER} (of "
                    "DeepMind's BYOL there is a converted file: pretrain_res50x1.pth.tar)"
                )
            if k == 0 and argument == MAGIC_NUMBER:
                break
            if opcode.name == "GLOBAL":
                found.update(_names(str(argument)))
        if k == 0:
            stream.read(1)  # the end of the first pickle
    return (name for name in found if not PARTS_OF_TENSORS.fullmatch(name))


def _names(argument: str) -> Iterable[str]:
    """Give a name as it stands and as Python 3 calls it: torch looks for the latter."""
    module, _, name = argument.partition(" ")
    yield f"{module}.{name}"
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    yield f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _unpickle(path: Path, names: list[str]) -> Any:
    stand_ins: list[Any] = [(_Inert(name.rpartition(".")[2], (Foreign,), {"name": name}), name) for name in names]
    whole = any(name.startswith("torch.nn.modules.") for name in names)
    try:
        # Not its path: one that ends in .safetensors would be read as such, whatever it holds.
        with warnings.catch_warnings(), safe_globals(stand_ins), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # advice to authors of checkpoints
            tree = torch.load(stream, map_location="cpu", weights_only=True)
    except QScoreError as error:
        raise QScoreError(f"{path}: {error}" if not whole else _whole_model(path)) from error
    except Exception as error:  # damaged files raise nearly anything
        raise QScoreError(_whole_model(path) if whole else _refusal(path, error, names)) from error
    if isinstance(tree, Foreign):
        raise QScoreError(_whole_model(path) if whole else f"{path}: a {type(tree).__name__}, not weights; {SAFER}")
    return tree


def _whole_model(path: Path) -> str:
    return f"{path}: a whole model saved with torch.save(model), which needs its code to run; {SAFER}"


def _refusal(path: Path, error: Exception, names: list[str]) -> str:
    named = f" (it refers to {', '.join(names[:3])})" if names else ""
    if "is blocked" in str(error):
        return f"{path}: the file asks for code to run{named}, and such files are refused; {SAFER}"
    if "Unsupported operand" in str(error):
        return f"{path}: a pickle of a kind that torch cannot read without running code{named}; {SAFER}"
    reason = re.sub(r"Weights only load failed.*", "the pickle cannot be read safely", _first_line(error))
    return f"{path}: a checkpoint that is damaged, truncated, or needs code to run{named}: {reason}; {SAFER}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
