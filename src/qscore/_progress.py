"""Progress on standard error: a live bar on a terminal, plain lines elsewhere, nothing for short work."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Advance", "progress"]

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0


class Advance(Protocol):
    """Called with the amount of work just done, and an optional note such as the current loss."""

    def __call__(self, amount: int, note: str = "") -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: object) -> Text:
        speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
        unit = task.fields["unit"]  # type: ignore[attr-defined]
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s", style="cyan")


@contextmanager
def progress(description: str, total: int | None, unit: str, *, start: int = 0) -> Iterator[Advance]:
    """Show how far a piece of work is, its rate and the time left.

    Parameters
    ----------
    description : str
        What is being done, e.g. ``"embed"``.
    total : int or None
        Units of work in all; None where it is unknown.
    unit : str
        Plural noun of the unit, e.g. ``"images"``.
    start : int
        Units already done by an earlier run.

    Yields
    ------
    Advance
        ``advance(amount, note)``.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _bar(console, description, total, unit, start)
    else:
        yield from _lines(description, total, unit, start)


def _bar(console: Console, description: str, total: int | None, unit: str, start: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total is not None else "{task.completed:,.0f}"),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(description, total=total, completed=start, unit=unit, note="")

        def advance(amount: int, note: str = "") -> None:
            bar.update(task, advance=amount, note=note)

        yield advance


def _lines(description: str, total: int | None, unit: str, start: int) -> Iterator[Advance]:
    begun = time.monotonic()
    next_line = begun + QUIET_SECONDS
    done = start

    def advance(amount: int, note: str = "") -> None:
        nonlocal done, next_line
        done += amount
        now = time.monotonic()
        if now < next_line:
            return
        next_line = now + LINE_SECONDS
        rate = (done - start) / max(now - begun, 1e-9)
        parts = [
            f"{description}: {done:,}" + (f" of {total:,} {unit}" if total else f" {unit}"),
            f"{rate:,.0f} {unit}/s",
        ]
        if total and rate > 0:
            parts.append(f"{(total - done) / rate:,.0f} s left")
        print(", ".join(parts + [note] * bool(note)), file=sys.stderr, flush=True)  # noqa: T201

    yield advance
