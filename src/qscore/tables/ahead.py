"""Reading in threads, in order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

__all__ = ["read_ahead"]

Item = TypeVar("Item")


def read_ahead(pieces: Iterable[Callable[[], Iterator[Item]]], *, threads: int, depth: int) -> Iterator[Item]:
    """Run iterators in threads of their own and give their items one iterator after another.

    Parameters
    ----------
    pieces : iterable of callables
        Each gives an iterator.
    threads : int
        Iterators that run at a time, >= 1.
    depth : int
        Items that each may be ahead, >= 1.

    Raises
    ------
    BaseException
        Whatever an iterator raises, in its place.

    Examples
    --------
    >>> list(read_ahead([lambda: iter("ab"), lambda: iter("cd"), lambda: iter("e")], threads=2, depth=1))
    ['a', 'b', 'c', 'd', 'e']
    """
    stop = threading.Event()
    waiting = iter(pieces)
    running: deque[tuple[queue.Queue[Any], threading.Thread]] = deque()

    def start(piece: Callable[[], Iterator[Item]]) -> None:
        items: queue.Queue[Any] = queue.Queue(depth)
        thread = threading.Thread(target=_fill, args=(piece, items, stop), name="qscore-read", daemon=True)
        running.append((items, thread))
        thread.start()

    try:
        for piece in islice(waiting, threads):
            start(piece)
        while running:
            items, thread = running[0]
            while (item := items.get()) is not None:
                if isinstance(item, _Failure):
                    raise item.error
                yield item
            running.popleft()
            thread.join()
            for piece in islice(waiting, 1):
                start(piece)
    finally:
        stop.set()
        for _, thread in running:
            thread.join()


class _Failure:
    """An error on its way from a thread to its caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fill(piece: Callable[[], Iterator[Any]], items: queue.Queue[Any], stop: threading.Event) -> None:
    """Put the items of an iterator into a queue, then None, or the failure that ended it; stop when told to."""

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        for item in piece():
            if not put(item):
                return
        put(None)
    except BaseException as error:  # whatever it is, it belongs to the caller
        put(_Failure(error))
