"""A limit on the wall clock, after which everything is left so that the same command goes on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OutOfTime", "time_budget"]


class OutOfTime(Exception):  # noqa: N818 (not an error)
    """The time is up, and what was done is saved."""


@contextmanager
def time_budget(minutes: float | None) -> Iterator[None]:
    """Interrupt a block as Ctrl-C does when the time is up: trainings end at a step, and save.

    Parameters
    ----------
    minutes : float or None
        None for no limit.

    Raises
    ------
    OutOfTime
        Instead of the KeyboardInterrupt that the end of the time has led to.
    """
    if minutes is None:
        yield
        return
    over = threading.Event()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as shells have it for what runs in the background
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    here = threading.get_ident()

    def interrupt() -> None:
        over.set()
        signal.pthread_kill(here, signal.SIGINT)  # a real one: it also ends a wait for another process

    timer = threading.Timer(60 * minutes, interrupt)
    timer.daemon = True
    try:
        timer.start()
        yield
    except KeyboardInterrupt:
        if over.is_set():
            raise OutOfTime from None
        raise
    finally:
        timer.cancel()
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
