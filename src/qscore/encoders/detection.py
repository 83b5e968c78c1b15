"""Which rows of the table of formats a file fits, and which of them it is."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from qscore._validate import QScoreError, nearest
from qscore.encoders.architectures import FAMILIES, find_family, infer_architecture
from qscore.encoders.formats import FORMATS, IMAGENET_MEAN, IMAGENET_STD, TITLES, Format
from qscore.encoders.preprocessing import Preprocessing
from qscore.encoders.vits import usual_heads

__all__ = ["Candidate", "choose", "find_candidates", "name_methods"]

WRAPPERS = ("module", "_orig_mod")  # of DataParallel, once or more, and of torch.compile
CIFAR_STEM, CIFAR_SIDE = (3, 3), 32
PADDINGS = (1, 2)


@dataclass(frozen=True)
class Candidate:
    """A file, read as one format has it."""

    format: Format
    container: tuple[str, ...]
    """Where in the file the state dict lies."""
    architecture: str
    """A name for `build_backbone`."""
    preprocessing: Preprocessing
    tensors: Mapping[str, Tensor]
    """The encoder's, by our network's names."""
    originals: Mapping[str, str]
    """The file's names for them."""
    dropped: Mapping[str, tuple[str, ...]]
    """Keys that are no part of the encoder, by what they are."""
    surplus: tuple[str, ...]
    """Keys that the format does not know."""

    @property
    def behaviour(self) -> tuple[Any, ...]:
        """All that decides what comes out; candidates that share it are interchangeable."""
        return self.container, self.architecture, self.preprocessing, tuple(sorted(self.originals.values()))

    @property
    def lead(self) -> str:
        """What the file writes before our network's names."""
        return next(
            (key.removesuffix(ours) for ours, key in self.originals.items() if key.endswith(ours)), self.format.prefix
        )

    @property
    def description(self) -> str:
        """What sets it apart from other readings of the same file."""
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
            return f"{self.architecture}, ImageNet's mean and std"
        inputs = "input in [0, 1]" if (max(mean), min(std)) == (0, 1) else f"mean {mean}, std {std}"
        return f"{self.architecture}, {inputs}"


def find_candidates(tree: Any, *, stem_padding: int | None = None, heads: int | None = None) -> list[Candidate]:
    """Read a file as every format that it fits has it.

    Parameters
    ----------
    tree : Any
        What the file holds.
    stem_padding : int, optional
        Padding of a 3x3 stem, where the format does not settle it or is overruled.
    heads : int, optional
        Attention heads of a vision transformer, likewise.
    """
    states = {path: _state_dict(tree, path) for row in FORMATS for path in row.containers}
    return [
        candidate
        for row in FORMATS
        for path in row.containers
        if (state := states[path])
        for candidate in _read_as(row, path, state, stem_padding, heads)
    ]


def choose(candidates: list[Candidate], method: str | None, hints: tuple[str, ...]) -> list[Candidate]:
    """Return candidates that share one behaviour; the first speaks for all.

    Parameters
    ----------
    candidates : list of Candidate
        As found; not empty.
    method : str or None
        A method, or a format's name, that decides where they differ.
    hints : tuple of str
        What file names and stored settings suggest, for the message.

    Raises
    ------
    QScoreError
        If none is of that method, or those left differ in arithmetic or preprocessing.
    """
    fewest = min(len(candidate.surplus) for candidate in candidates)
    fitting = [candidate for candidate in candidates if len(candidate.surplus) == fewest]
    asked = [candidate for candidate in fitting if _is_asked_for(candidate.format, method)]
    named = [candidate for candidate in asked if method and candidate.format.name.casefold() == method.casefold()]
    asked = named or asked
    if not asked and method is None:
        texts = ", ".join(dict.fromkeys(f"--method {c.format.name!r}" for c in fitting))
        raise QScoreError(f"this file may be {_list(fitting)}, which is read only when asked for: give {texts}")
    if not asked:
        options = sorted({name for c in fitting for name in (*c.format.methods, c.format.name)})
        hint = nearest(method or "", options)
        raise QScoreError(f"method {method!r}: this file may be {_list(fitting)}{hint}")
    if len({candidate.behaviour for candidate in asked}) > 1:
        said = f" ({'; '.join(hints)}: a hint, no proof)" if hints else ""
        raise QScoreError(f"nothing in the file tells which of these it is: {_list(asked)}{said}; {_cure(asked)}")
    return asked


def name_methods(chosen: list[Candidate], method: str | None) -> str | None:
    """Return the method of candidates that behave alike; ``"unknown (A or B)"`` where it may be several."""
    methods = list(dict.fromkeys(name for candidate in chosen for name in candidate.format.methods))
    if method and method.casefold() in TITLES and not (methods and method.casefold() not in methods):
        return method.casefold()
    if not methods or not all(candidate.format.methods for candidate in chosen):
        return None
    if len(methods) == 1:
        return methods[0]
    titles = [TITLES[name] for name in methods]
    return f"unknown ({', '.join(titles[:-1])} or {titles[-1]})"


def _is_asked_for(row: Format, method: str | None) -> bool:
    if method is None:
        return not row.only_on_request
    if row.name.casefold() == method.casefold():
        return True
    # A format that may hold any method, holds this one too.
    fits = method.casefold() in row.methods or (not row.methods and method.casefold() in TITLES)
    return fits and not row.only_on_request


def _list(candidates: list[Candidate]) -> str:
    texts: dict[str, dict[str, None]] = {}
    several = len({candidate.container for candidate in candidates}) > 1
    for candidate in candidates:
        where = f", at {_place(candidate)}" * several
        texts.setdefault(candidate.description + where, {})[candidate.format.name] = None
    return ", ".join(f"{' or '.join(names)} ({description})" for description, names in texts.items())


def _place(candidate: Candidate) -> str:
    return ".".join(candidate.container) or "the top"


def _cure(asked: list[Candidate]) -> str:
    """Name the option that settles it: the stem's padding, the heads, the method, or the format's name."""
    if len({c.format for c in asked}) < len({(c.format, c.container) for c in asked}):
        places = " and ".join(dict.fromkeys(map(_place, asked)))
        return f"it holds encoders at {places}: save the one that you mean in a file of its own"
    numbers = dict.fromkeys(found[1] for c in asked if (found := re.search(r"^vit:.*-h(\d+)-", c.architecture)))
    if len(numbers) > 1 and len({c.preprocessing for c in asked}) == 1:
        return f"give its number of attention heads with heads= or --heads ({' or '.join(numbers)})"
    paddings = {candidate.architecture: candidate for candidate in asked if "-cifar" in candidate.architecture}
    stems = "stem_padding= or --stem-padding (solo-learn's is 2, most others' 1)"
    if len(paddings) > 1 and len({candidate.preprocessing for candidate in asked}) == 1:
        return f"give the padding of its 3x3 stem with {stems}"
    methods = [candidate.format.methods for candidate in asked]
    settles = all(len(names) == 1 for names in methods) and len(set(methods)) == len({c.format for c in asked})
    names = dict.fromkeys(c.format.methods[0] if settles else c.format.name for c in asked)
    also = f", and the padding of its 3x3 stem with {stems}" if len(paddings) > 1 else ""
    return f"say which with method= or --method ({', '.join(map(repr, names))}){also}"


def _state_dict(tree: Any, path: tuple[str, ...]) -> dict[str, tuple[str, Tensor]]:
    """Return the tensors at a path, by their keys without wrappers, each with its key in the file."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    if not isinstance(tree, Mapping):
        return {}
    state: dict[str, tuple[str, Tensor]] = {}
    for key, value in tree.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            bare = ".".join(part for part in key.split(".") if part not in WRAPPERS)
            if bare in state:
                raise QScoreError(f"{state[bare][0]!r} and {key!r} are the same key {bare!r} in different wrappers")
            state[bare] = key, value
    return state


def _read_as(
    row: Format,
    path: tuple[str, ...],
    state: Mapping[str, tuple[str, Tensor]],
    stem_padding: int | None,
    heads: int | None,
) -> Iterator[Candidate]:
    has = [any(re.match(mark, key) for key in state) for mark in (*row.marks, *row.without)]
    if not all(has[: len(row.marks)]) or any(has[len(row.marks) :]):
        return
    inside: dict[str, tuple[str, Tensor]] = {}
    dropped: dict[str, list[str]] = {}
    surplus = []
    for key, (original, tensor) in state.items():
        reason = next((reason for pattern, reason in row.drop if re.match(pattern, key)), None)
        if reason is not None:
            dropped.setdefault(reason, []).append(key)
        elif key.startswith(row.prefix):
            inside[key.removeprefix(row.prefix)] = original, tensor
        else:
            surplus.append(original)
    family = find_family(list(inside))
    if family is None or family not in row.families:
        return
    rename = FAMILIES[family].rename
    tensors: dict[str, Tensor] = {}
    originals: dict[str, str] = {}
    for key, (original, tensor) in inside.items():
        ours = rename(key)
        if ours in tensors:
            raise QScoreError(f"{originals[ours]!r} and {original!r} are two names of the same weights, {ours!r}")
        tensors[ours], originals[ours] = tensor, original
    reasons = {reason: tuple(keys) for reason, keys in dropped.items()}
    paddings, numbers = _paddings(row, family, tensors, stem_padding), _heads(row, family, tensors, heads)
    for padding, number in product(paddings, numbers):
        architecture = infer_architecture(family, tensors, cifar_padding=padding, same=row.same, heads=number)
        preprocessing = row.preprocessing(family, CIFAR_SIDE if padding else _native_side(architecture))
        yield Candidate(row, path, architecture, preprocessing, tensors, originals, reasons, tuple(surplus))


def _paddings(row: Format, family: str, tensors: Mapping[str, Tensor], asked: int | None) -> tuple[int | None, ...]:
    stem = tensors.get("conv1.weight")
    if family != "resnet" or stem is None or stem.shape[2:] != CIFAR_STEM:
        return (None,)
    if row.same:  # its only networks have the 7x7 stem
        return ()
    settled = asked or row.cifar_padding
    return PADDINGS if settled is None else (settled,)


def _heads(row: Format, family: str, tensors: Mapping[str, Tensor], asked: int | None) -> tuple[int, ...]:
    if family != "vit":
        return (1,)
    return (asked,) if asked else usual_heads(tensors, settled=dict(row.heads))


def _native_side(architecture: str) -> int:
    match = re.search(r"^vit:.*-s(\d+)", architecture)
    return int(match[1]) if match else 224
