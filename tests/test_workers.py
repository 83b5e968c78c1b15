import multiprocessing
import os
import signal

import pytest

from qscore import QScoreError
from qscore._workers import _Aside, fetched

TORCH_S = "torch.utils.data._utils.signal_handling"


class Items:
    def __init__(self, error=None):
        self.error = error

    def __len__(self):
        return 40

    def __getitem__(self, k):
        if self.error is not None:
            raise self.error
        return k


@pytest.fixture
def first_loader(monkeypatch):
    """Torch sets its handler with the first loader of a process."""
    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr("qscore._workers._aside", _Aside())  # whatever loaders other tests have left open
    monkeypatch.setattr(f"{TORCH_S}._SIGCHLD_handler_set", False)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_torch_s_handler_is_set_aside_and_put_back(first_loader):
    batches = fetched(Items(), num_workers=1, batch_size=4)
    assert next(batches).tolist() == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    batches.close()
    assert signal.getsignal(signal.SIGCHLD).__module__ == TORCH_S


def test_of_two_loaders_the_last_puts_it_back(first_loader):
    loaders = [fetched(Items(), num_workers=1, batch_size=4) for _ in range(2)]
    for batches in loaders:
        next(batches)
    loaders[0].close()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    loaders[1].close()
    assert signal.getsignal(signal.SIGCHLD).__module__ == TORCH_S


def test_a_handler_set_meanwhile_stays(first_loader):
    batches, handler = fetched(Items(), num_workers=1, batch_size=4), lambda *_: None
    next(batches)
    signal.signal(signal.SIGCHLD, handler)
    batches.close()
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_another_s_handler_is_left_alone(monkeypatch):
    handler, before = lambda *_: None, signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(f"{TORCH_S}._SIGCHLD_handler_set", True)
    signal.signal(signal.SIGCHLD, handler)
    try:
        batches = fetched(Items(), num_workers=1, batch_size=4)
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) is handler
        batches.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_death_is_told_where_batches_are_asked_for(first_loader):
    others = set(multiprocessing.active_children())
    batches = fetched(Items(), num_workers=1, batch_size=1)
    next(batches)
    [worker] = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()  # torch's own handler would raise here
    with pytest.raises(QScoreError) as error:
        list(batches)
    assert str(error.value) == (
        "a process that decodes images has died, as when memory is short (killed by SIGKILL); the same command goes on "
        "where it stopped, with fewer workers if need be"
    )


class Loader:
    def __init__(self, error, workers):
        self.error, self.num_workers = error, workers

    def __iter__(self):
        yield 1
        raise self.error


@pytest.fixture
def fail(monkeypatch):
    def fail(error, workers):
        monkeypatch.setattr("qscore._workers.DataLoader", lambda _: Loader(error, workers))
        list(fetched(Items()))

    return fail


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError("gone.")])
def test_a_worker_that_hangs_up_is_dying(error, fail):
    with pytest.raises(QScoreError, match=r"^a process that decodes images has died, .* \((\[Errno 104\]|gone\))"):
        fail(error, 1)


@pytest.mark.parametrize(
    ("error", "workers"),
    [
        (EOFError("gone"), 0),
        (OSError("Caught OSError in DataLoader worker process 0."), 1),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), 1),
    ],
)
def test_other_errors_are_let_through(error, workers, fail):
    with pytest.raises(type(error), match=str(error)):
        fail(error, workers)


def test_a_worker_s_own_error_is_no_death():
    with pytest.raises(OSError, match="Caught OSError"):
        list(fetched(Items(OSError(5, "input/output error")), num_workers=1))


def test_more_workers_than_processors_are_no_cause_for_a_warning():
    assert len(list(fetched(Items(), num_workers=(os.cpu_count() or 1) + 1, batch_size=10))) == 4
