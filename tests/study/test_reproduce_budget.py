import signal
import subprocess
import sys

import pytest

from qscore.study.reproduce.budget import OutOfTime, time_budget


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])  # the latter in the background
def test_time_that_is_up_ends_a_block_as_ctrl_c_does(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(OutOfTime), time_budget(1e-9):
            while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                pass
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt), time_budget(60):
        raise KeyboardInterrupt
    with time_budget(None):
        pass


def test_time_that_is_up_ends_a_wait_for_another_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as endless:
        try:
            with pytest.raises(OutOfTime), time_budget(1e-3):
                endless.wait(60)
        finally:
            endless.kill()
