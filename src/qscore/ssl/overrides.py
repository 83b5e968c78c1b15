"""Settings of a method as the user gives them: ``key=value``, a dot leading into nested settings."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from qscore._validate import QScoreError, nearest

__all__ = ["parse_overrides", "replace_fields"]

KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a word"}
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
NUMBERS = {2: "two", 3: "three", 4: "four"}


def parse_overrides(assignments: Sequence[str], config: Any) -> dict[str, Any]:
    """Read ``key=value`` strings by the types of a method's settings.

    Parameters
    ----------
    assignments : sequence of str
        E.g. ``["lr=0.1", "augment.scale=0.2,1"]``; a dot leads into nested settings.
    config : dataclass or type
        The settings, or their class.

    Raises
    ------
    QScoreError
        If a field is unknown, with the nearest match, or a value is not of its type.

    Examples
    --------
    >>> from qscore.ssl.simclr import Config
    >>> parse_overrides(["lr=0.1", "augment.scale=0.2,1"], Config)
    {'lr': 0.1, 'augment.scale': (0.2, 1.0)}
    """
    parsed = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise QScoreError(f"{assignment!r}: expected key=value, such as lr=0.1")
        kind = _field_type(key, config)
        try:
            parsed[key] = _parse(text, kind)
        except (ValueError, KeyError):
            raise QScoreError(f"{key}: expected {_describe(kind)}, got {text!r}") from None
    return parsed


def replace_fields(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return settings with some fields replaced.

    Parameters
    ----------
    config : dataclass
        The settings.
    changes : mapping of str to object
        Names of fields, nested ones with a dot, and their values.

    Raises
    ------
    QScoreError
        If a field is unknown, with the nearest match, or a value is not of its type.
    """
    for key, value in changes.items():
        kind = _field_type(key, config)
        if not _fits(value, kind):
            raise QScoreError(f"{key}: expected {_describe(kind)}, got {value!r}")
    flat = {key: value for key, value in changes.items() if "." not in key}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        name, dot, field = key.partition(".")
        if dot:
            inner.setdefault(name, {})[field] = value
    return replace(config, **flat, **{name: replace(getattr(config, name), **own) for name, own in inner.items()})


def _field_type(key: str, config: Any) -> Any:
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    head, dot, rest = key.partition(".")
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    flat = hints.keys() - groups.keys()
    nested = {f"{name}.{inner}" for name, kind in groups.items() for inner in typing.get_type_hints(kind)}
    if key not in flat | nested:
        suggestion = nearest(key, flat | nested) or nearest(f"{next(iter(groups), '')}.{key}", nested)
        known = [*sorted(flat), *(f"{name}.*" for name in groups)]
        then = " Known" if suggestion else "; known"
        raise QScoreError(f"unknown setting {key!r}{suggestion}{then} are {', '.join(known[:-1])} and {known[-1]}")
    return typing.get_type_hints(groups[head])[rest] if dot else hints[key]


def _parse(text: str, kind: Any) -> Any:
    if _optional(kind):
        return None if text.lower() == "none" else _parse(text, _optional(kind))
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        return tuple(_parse(part, inner) for part, inner in zip(text.split(","), kinds, strict=True))
    return BOOLEANS[text.lower()] if kind is bool else kind(text)


def _fits(value: Any, kind: Any) -> bool:
    if _optional(kind):
        return value is None or _fits(value, _optional(kind))
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _describe(kind: Any) -> str:
    if _optional(kind):
        return f"{_describe(_optional(kind))}, or none"
    if typing.get_origin(kind) is tuple:
        return f"{NUMBERS[len(typing.get_args(kind))]} numbers with a comma between"
    return KINDS[kind]


def _optional(kind: Any) -> Any:
    """Return the type beside None in a union of the two, or None."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return None
    return next(inner for inner in typing.get_args(kind) if inner is not type(None))
