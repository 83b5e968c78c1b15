import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from qscore.study.reproduce import processes
from qscore.study.reproduce.results import Unit

UNITS = [
    Unit("small", "curve", "simclr-512", "simclr", 0),
    Unit("small", "curve", "simclr-2048", "simclr", 0),
    Unit("small", "curve", "vicreg-512", "vicreg", 0),
    Unit("small", "methods", "simclr", "simclr", 0),
]


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also where these tests run in the background, whose shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def commands(monkeypatch):
    seen = []

    class Process:
        def __init__(self, command, **_):
            self.code = 3 if "vicreg" in command else 0
            seen.append(command)

        def wait(self):
            return self.code

    monkeypatch.setattr(processes.subprocess, "Popen", Process)
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_process_starts_loses_it_not(monkeypatch, number):
    class Process:
        def __init__(self, command, **_):
            signal.raise_signal(number)

    monkeypatch.setattr(processes.subprocess, "Popen", Process)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands = processes.Commands()
    try:
        with pytest.raises(KeyboardInterrupt):
            commands.start(["a"])
        assert len(commands.running) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler is signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_the_end_nothing_starts(commands):
    ended = processes.Commands()
    ended.stop()
    assert ended.start(["a"]) is None and commands == []


def test_one_command_for_each_stage_and_method(commands):
    failed = processes.run_processes(UNITS, ["--seed", "1"], 1, None)
    begin = [sys.executable, "-m", "qscore", "reproduce", "--stage"]
    assert commands == [
        [*begin, "curve", "--methods", "simclr", "--seed", "1"],
        [*begin, "curve", "--methods", "vicreg", "--seed", "1"],
        [*begin, "methods", "--methods", "simclr", "--seed", "1"],
    ]
    assert failed == {"curve vicreg": "its command ended with code 3; run it alone to see why"}


def test_each_command_is_given_the_time_that_is_left(commands, monkeypatch):
    clock = iter([0.0, 60.0, 150.0, 178.0])
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    processes.run_processes(UNITS, [], 1, 3.0)
    assert [command[-2:] for command in commands] == [["--minutes", "2.000"], ["--minutes", "0.500"]]


def test_as_many_at_a_time_as_asked_and_a_stage_after_the_other(monkeypatch):
    both, running = threading.Barrier(2, timeout=60), []

    class Process:
        def __init__(self, command, **_):
            self.stage = command[5]
            running.append(self.stage)

        def wait(self):
            if self.stage == "curve":
                both.wait()  # each waits for the other
            return 0

    monkeypatch.setattr(processes.subprocess, "Popen", Process)
    assert processes.run_processes(UNITS, [], 2, None) == {}
    assert running == ["curve", "curve", "methods"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("several", [True, False])
def test_an_interrupt_ends_the_commands_first_and_starts_nothing_more(monkeypatch, number, several):
    seen, ended = [], threading.Event()

    class Process:
        def __init__(self, command, **_):
            seen.append(command)

        def wait(self):
            if not ended.is_set():
                os.kill(os.getpid(), number)
                assert ended.wait(60)
            return 1

        def terminate(self):
            ended.set()

    monkeypatch.setattr(processes.subprocess, "Popen", Process)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        if several:
            processes.run_processes(UNITS[3:] + UNITS[:3], [], 1, None)
        else:
            processes.run_command(["--stage", "curve"])
    assert len(seen) == 1 and ended.is_set() and signal.getsignal(signal.SIGTERM) is before
