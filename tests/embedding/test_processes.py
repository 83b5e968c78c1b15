import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference.tables import Dying, Imageless, OddError, damage, make_encoder, table_bytes

from qscore import QScoreError, embed
from qscore.embedding import processes, read_skipped, run, skipped_path, views_path
from qscore.embedding.parts import Part, PartFolder, compute
from qscore.embedding.processes import Errand, Rank, run_errands
from qscore.embedding.shards import Skipped
from qscore.encoders import Encoder
from qscore.images import open_images

OPTIONS = {"batch_size": 2, "views": 2, "device": "cpu"}
LAUNCHED = """
import sys
from reference.tables import make_encoder
from qscore import embed
from qscore.embedding import run
run.SHARD_ROWS = 3
embed(sys.argv[1], make_encoder(), sys.argv[2], batch_size=2, views=2, device="cpu", devices=2)
"""


@pytest.fixture
def whole(tmp_path, encoder, photos, monkeypatch):
    """The tables that one process writes of photos some of which cannot be read, a whole shard among them."""
    monkeypatch.setattr(run, "SHARD_ROWS", 3)
    damage(photos, 0, 3, 4, 5, 11)
    return embed(photos, encoder, tmp_path / "whole", **OPTIONS)


def assert_same(out, whole):
    for place in (lambda path: path, views_path):
        assert table_bytes(place(out)) == table_bytes(place(whole))
        assert sorted(p.name for p in place(out).iterdir()) == sorted(p.name for p in place(whole).iterdir())
    assert skipped_path(out).read_bytes() == skipped_path(whole).read_bytes()


def test_two_processes_write_the_bytes_of_one(tmp_path, encoder, photos, whole, monkeypatch):
    embed(photos, encoder, tmp_path / "e", devices=2, **OPTIONS)
    assert_same(tmp_path / "e", whole)
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda _: pytest.fail("started again"))
    embed(photos, encoder, tmp_path / "e", devices=2, **OPTIONS | {"views": 0})


@pytest.mark.parametrize("before", ["nothing", pytest.param("another table", marks=pytest.mark.slow)])
def test_launched_processes_write_the_bytes_of_one(tmp_path, photos, whole, before):
    script = LAUNCHED
    if before == "another table":
        embed(photos, make_encoder(seed=1), tmp_path / "e", **OPTIONS)
        script = script.replace("devices=2", "devices=2, overwrite=True")
    environment = os.environ | {"WORLD_SIZE": "2", "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    launched = [
        subprocess.Popen(
            [sys.executable, "-c", script, photos, tmp_path / "e"], env=environment | {"RANK": str(number)}
        )
        for number in (1, 0)
    ]
    assert [process.wait(120) for process in launched] == [0, 0]
    assert_same(tmp_path / "e", whole)


def make_errand(encoder, photos, folder):
    passed = run.Pass(open_images(photos), encoder, None, batch_size=2, precision="32-true")
    job = passed.job(0, "skip")
    return Errand(job, job.shards(0), PartFolder(folder))


def test_parts_that_an_earlier_run_left_are_taken(tmp_path, encoder, photos, whole, monkeypatch):
    errand = make_errand(encoder, photos, tmp_path / "parts")
    assert errand.shards == [range(0, 3), range(3, 6), range(6, 9), range(9, 12)]
    computed = []
    monkeypatch.setattr(processes, "compute", lambda _, shards, *rest: computed.extend(shards) or iter(()))
    errand.folder.write(Part(range(3, 6)))
    for number in (0, 1):
        run_errands([errand], Rank(number, 2), torch.device("cpu"), lambda: None)
    assert computed == [range(0, 3), range(6, 9), range(9, 12)]


def test_a_part_comes_back_as_it_was_handed_over(tmp_path, encoder, photos, whole):
    errand = make_errand(encoder, photos, tmp_path / "parts")
    assert errand.folder.take(range(0, 3)) is None
    for part in compute(errand.job, errand.shards, torch.device("cpu"), lambda *_: None):
        errand.folder.write(part)
        found = errand.folder.take(part.shard)
        assert (found.shard, found.kept, found.skipped) == (part.shard, part.kept, part.skipped)
        assert b"".join(h.tobytes() for h in found.rows) == b"".join(h.tobytes() for h in part.rows)
        assert len(found.rows) == bool(part.kept)
    assert isinstance(found.skipped[0], Skipped)
    errand.folder.drop(range(0, 3))
    assert errand.folder.take(range(0, 3)) is None


def test_what_a_process_refuses_is_refused(tmp_path, encoder, photos, whole):
    with pytest.raises(QScoreError, match=r"^[^\n]*\.png: the image is damaged[^\n]*$"):
        embed(photos, encoder, tmp_path / "e", devices=2, on_error="raise", **OPTIONS)


def test_a_process_that_dies_ends_the_run(tmp_path, photos):
    encoder = Encoder(Dying(), make_encoder().source)
    with pytest.raises(QScoreError, match=r"process [12] of 2 ended with code 3; the same command goes on"):
        embed(photos, encoder, tmp_path / "e", devices=2, device="cpu")


def start_ended(monkeypatch, code):
    """Let processes have ended as soon as they are started; returns the list of the arguments they were given."""
    given = []
    ended = SimpleNamespace(start=lambda: None, terminate=lambda: None, join=lambda: None, exitcode=code)
    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=lambda args, **_: given.append(args) or ended)
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda _: context)
    return given


def test_a_process_that_dies_before_it_has_heard_its_work(tmp_path, photos, whole, monkeypatch):
    encoder = make_encoder(name="small:resnet10-16")  # larger than a pipe
    errand = make_errand(encoder, photos, tmp_path / "parts")
    given = start_ended(monkeypatch, code=-9)
    with processes.started_processes([errand], [torch.device("cpu")] * 2) as watch:
        assert sum(len(x) for arguments in given for x in arguments if isinstance(x, bytes | str)) < 100
        with pytest.raises(QScoreError, match="process 1 of 2 ended with code -9; the same command goes on"):
            watch()


def test_a_part_that_vanishes_is_not_waited_for(tmp_path, encoder, photos, whole, monkeypatch):
    errand = make_errand(encoder, photos, tmp_path / "parts")
    start_ended(monkeypatch, code=0)
    with processes.started_processes([errand], [torch.device("cpu")] * 2) as watch:
        watch()  # the part may have come just before the process ended
        with pytest.raises(QScoreError, match="a part has vanished from .*/parts; one run at a time"):
            watch()


def test_what_a_process_did_not_foresee_is_raised_and_not_printed(tmp_path, encoder, photos, capfd):
    with pytest.raises(RuntimeError) as caught:
        embed(Imageless(open_images(photos)), encoder, tmp_path / "e", devices=2, device="cpu")
    # It would start others as this one, and Ctrl-C does not reach it.
    assert str(caught.value) == f"{multiprocessing.get_start_method()}, undisturbed"
    assert "in image" in caught.value.__notes__[0] and "Traceback" not in capfd.readouterr().err
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_errors_that_do_not_travel_go_as_their_text():
    assert repr(processes._sendable(KeyError("lost"))) == "KeyError('lost')"
    assert repr(processes._sendable(OddError(1, "odd"))) == "RuntimeError('OddError: odd 1')"
    assert not hasattr(processes._sendable(QScoreError("clear")), "__notes__")


def test_no_image_at_all_leaves_nothing(tmp_path, encoder, photos):
    damage(photos, *range(12))
    with pytest.raises(QScoreError, match="none of 12 images can be read"):
        embed(photos, encoder, tmp_path / "e", devices=2, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    assert read_skipped(tmp_path / "e") == []


def test_devices_that_are_not_there(tmp_path, encoder, photos, monkeypatch):
    with pytest.raises(QScoreError, match="devices: expected at least 1, got 0"):
        embed(photos, encoder, tmp_path / "e", devices=0)
    monkeypatch.setattr(processes, "pick_device", torch.device)
    with pytest.raises(QScoreError, match="devices=2: expected the device as 'auto', 'cpu' or 'cuda', got 'cuda:1'"):
        embed(photos, encoder, tmp_path / "e", devices=2, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(QScoreError, match="devices=4: expected at most 3, the GPUs of this machine"):
        embed(photos, encoder, tmp_path / "e", devices=4, device="cuda")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(QScoreError, match="devices: expected 3, as many as processes were launched, got 2"):
        embed(photos, encoder, tmp_path / "e", devices=2, device="cpu")
    assert not (tmp_path / "e").exists()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(processes, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes.pick_devices("cuda", 2, None) == [torch.device("cuda:0"), torch.device("cuda:1")]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.pick_devices("cuda", 8, Rank(5, 8)) == [torch.device("cuda:1")]
