"""The worker processes of torch's loaders, whose death is told of in one place and in one line."""

import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from qscore._validate import QScoreError, one_line

__all__ = ["fetched"]


def fetched(dataset: Any, **options: Any) -> Generator[Any, None, None]:
    """Give the batches of a new loader; what its worker processes meet comes up here, and nowhere else in the program.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        What to load.
    options : dict
        Of `torch.utils.data.DataLoader`.

    Yields
    ------
    batch
        As the loader collates it.

    Raises
    ------
    QScoreError
        If a worker process has died.

    Examples
    --------
    >>> list(fetched(["a", "b"], batch_size=None))
    ['a', 'b']
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # as many processes as were asked for
        loader: Any = DataLoader(dataset, **options)
        batches = iter(loader)
    with _without_torchs_handler():
        try:
            yield from batches
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_death(error, loader.num_workers):
                raise
            raise QScoreError(
                f"a process that decodes images has died, as when memory is short ({_cause(error, batches)}); "
                "the same command goes on where it stopped, with fewer workers if need be"
            ) from error


class _Aside:
    """Torch's handler while it is set aside, and the loaders that it is set aside for."""

    handler: Any = None
    loaders: int = 0


_aside = _Aside()


@contextmanager
def _without_torchs_handler() -> Iterator[None]:
    """Set aside torch's signal handler, which would raise that a worker has died anywhere in the program.

    Without it the loader finds out by itself, within five seconds.
    """
    _aside.loaders += 1
    handler: Any = signal.getsignal(signal.SIGCHLD)
    of_torch = getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling"
    if of_torch and _in_main_thread():
        _aside.handler = handler
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        _aside.loaders -= 1
        if not _aside.loaders and _aside.handler is not None and _in_main_thread():
            if signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:  # nobody else's is there now
                signal.signal(signal.SIGCHLD, _aside.handler)
            _aside.handler = None


def _in_main_thread() -> bool:
    """Return whether handlers of signals can be set here."""
    return threading.current_thread() is threading.main_thread()


def _is_death(error: Exception, workers: int) -> bool:
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    # A worker that hangs up is dying; its own errors come with a traceback, in which it says that it was caught.
    return workers > 0 and not str(error).startswith("Caught")


def _cause(error: Exception, batches: Any) -> str:
    codes = [worker.exitcode for worker in getattr(batches, "_workers", ())]
    signals = sorted({signal.Signals(-code).name for code in codes if code is not None and code < 0})
    return f"killed by {', '.join(signals)}" if signals else one_line(error).rstrip(". ")
