import threading

import pytest

from qscore.study.reproduce import results


def test_the_time_of_a_run_that_is_killed_is_noted_on_the_way(tmp_path, monkeypatch):
    noted = threading.Event()
    monkeypatch.setattr(results, "EVERY", 0.001)
    monkeypatch.setattr(results, "atomic_path", lambda file, real=results.atomic_path: noted.set() or real(file))
    with results.timed(tmp_path / "seconds"):
        assert noted.wait(60)


def test_a_clock_that_cannot_be_noted_hides_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyboardInterrupt), results.timed(tmp_path / "file" / "seconds"):
        raise KeyboardInterrupt
