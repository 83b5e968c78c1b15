"""What all verbs share: `--json`, `--debug`, one clear line for bad input, and exit codes."""

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from qscore._files import to_json
from qscore._validate import QScoreError

__all__ = ["Outcome", "verb"]

WIDTH_OF_FILES = 120  # standard output that is no terminal has no width of its own

_JSON = Annotated[bool, typer.Option("--json", help="Print one machine-readable result on standard output.")]
_DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True)
class Outcome:
    """What a verb found: for machines, and for people."""

    data: dict[str, Any]
    text: Iterable[Any]
    """Strings and rich tables, printed one after another."""
    failed: bool = False
    """Whether a part of what was asked for was refused, so that the command ends with 1."""


def verb(function: Callable[..., Outcome]) -> Callable[..., None]:
    """Make a function that returns an `Outcome` into a command.

    Exit codes: 0 done, 1 refused, wholly or in part, with a clear line, 2 bad usage, 130 interrupted.
    """

    @functools.wraps(function)
    def command(*args: Any, as_json: bool, debug: bool, **options: Any) -> None:
        errors = Console(stderr=True, soft_wrap=True, highlight=False)
        _send_to_standard_error(errors)
        try:
            outcome = function(*args, **options)
            _print(outcome, as_json=as_json)
            if outcome.failed:
                raise typer.Exit(1)
        except KeyboardInterrupt:
            errors.print("interrupted; the same command continues where this one stopped, where it can")
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                raise
            errors.print(f"[bold red]error:[/] {escape(_line(error))}")
            raise typer.Exit(1) from None

    signature = inspect.signature(function)
    shared = [
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON),
        inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_DEBUG),
    ]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *shared], return_annotation=None
    )
    return command


def _print(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(to_json(outcome.data) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, highlight=False)
    for part in outcome.text:
        console.print(escape(part) if isinstance(part, str) else part)


def _line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, QScoreError | OSError | MemoryError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (unexpected; --debug shows where)"


def _send_to_standard_error(errors: Console) -> None:
    """Print log messages and warnings of the package as single lines."""
    warnings.showwarning = lambda message, *_, **__: errors.print(f"[yellow]warning:[/] {escape(str(message))}")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("qscore")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
