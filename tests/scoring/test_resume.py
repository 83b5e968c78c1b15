import random
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore import QScoreError, compress, score
from qscore.scoring import features_path
from qscore.tables import embeddings, formats, write_shard

spill = sys.modules["qscore.scoring.spill"]


@pytest.fixture
def table(tmp_path, relu_table, monkeypatch):
    monkeypatch.setattr(embeddings, "PART_BYTES", 1)
    for k in range(5):
        rows = np.arange(k * 40, (k + 1) * 40)
        write_shard(
            tmp_path / "embeddings" / f"part-{k}.parquet", relu_table[rows], {"id": pa.array(map(str, rows))}, {}
        )
    return tmp_path / "embeddings"


@pytest.fixture
def signed(tmp_path, rng, monkeypatch):
    """A table of several segments in one file, whose only negative value comes late."""
    monkeypatch.setattr(formats, "BATCH_BYTES", 20 * 64 * 4)
    monkeypatch.setattr(formats, "SEGMENT_BYTES", 20 * 64 * 4)
    monkeypatch.setattr(embeddings, "PART_BYTES", 40 * 64 * 4)
    H = rng.gamma(0.3, size=(200, 64)).astype(np.float32)
    H[150, 3] = -0.5
    np.save(tmp_path / "signed.npy", H)
    return tmp_path / "signed.npy"


def written(out):
    return out.read_bytes(), features_path(out).read_bytes()


def interrupted_after(monkeypatch, scans, error):
    """Make the scan fail once, after a number of calls; returns the list of all calls."""
    calls, scan = [], spill.scan

    def failing(*args, **options):
        calls.append(len(args[0]))
        if len(calls) == scans + 1:
            raise error
        return scan(*args, **options)

    monkeypatch.setattr(spill, "scan", failing)
    return calls


@pytest.mark.parametrize("name", ["table", "signed"])
@pytest.mark.parametrize("scans", [0, 1, 2, 4])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(tmp_path, request, monkeypatch, name, scans):
    source = request.getfixturevalue(name)
    score(source, tmp_path / "whole.parquet", epsilon=3.0)
    calls = interrupted_after(monkeypatch, scans, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        score(source, tmp_path / "s.parquet", epsilon=3.0)
    assert not (tmp_path / "s.parquet").exists()
    score(source, tmp_path / "s.parquet", epsilon=3.0)
    assert written(tmp_path / "s.parquet") == written(tmp_path / "whole.parquet")
    if name == "table":
        assert sum(calls) == 200 + 40  # only the segment under way was scanned again
    assert not list(tmp_path.glob(".*"))


def test_no_resume_begins_anew(tmp_path, table, monkeypatch):
    calls = interrupted_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        score(table, tmp_path / "s.parquet", epsilon=3.0)
    score(table, tmp_path / "s.parquet", epsilon=3.0, resume=False)
    assert sum(calls) == 4 * 40 + 200


@pytest.mark.parametrize("change", ["epsilon", "shard"])
def test_another_run_does_not_go_on(tmp_path, table, relu_table, monkeypatch, change):
    calls = interrupted_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        score(table, tmp_path / "s.parquet", epsilon=3.0)
    if change == "shard":
        write_shard(table / "part-0.parquet", relu_table[:40] * 2, {"id": pa.array(map(str, range(40)))}, {})
    epsilon = 2.0 if change == "epsilon" else 3.0
    score(table, tmp_path / "s.parquet", epsilon=epsilon)
    assert sum(calls) == 4 * 40 + 200
    score(table, tmp_path / "whole.parquet", epsilon=epsilon)
    assert written(tmp_path / "s.parquet") == written(tmp_path / "whole.parquet")


def test_a_store_that_fails_for_good_leaves_a_state_to_go_on_from(tmp_path, table, monkeypatch):
    score(table, tmp_path / "whole.parquet", epsilon=3.0)
    monkeypatch.setattr(embeddings, "READERS", 1)
    pauses = []
    monkeypatch.setattr(embeddings, "pause", pauses.append)
    iter_batches, opened = formats.pq.ParquetFile.iter_batches, []

    def failing(self, *args, **options):
        if "row_groups" in options:  # rows are read, not looked at
            opened.append(1)
            if len(opened) > 3:
                raise OSError(110, "Connection timed out")
        return iter_batches(self, *args, **options)

    monkeypatch.setattr(formats.pq.ParquetFile, "iter_batches", failing)
    with pytest.raises(QScoreError, match=r"cannot read .*part-3.parquet.*timed out.*the same command goes on"):
        score(table, tmp_path / "s.parquet", epsilon=3.0)
    assert len(opened) == 3 + 3
    assert pauses == [0, 1]
    # A part is done when the next one begins: of the three that were read, two are kept.
    assert len(list((tmp_path / ".s.parquet.work").glob("part-*.arrow"))) == 2
    monkeypatch.setattr(formats.pq.ParquetFile, "iter_batches", iter_batches)
    score(table, tmp_path / "s.parquet", epsilon=3.0)
    assert written(tmp_path / "s.parquet") == written(tmp_path / "whole.parquet")


def test_two_processes_do_not_write_one_output(tmp_path, table):
    work = sys.modules["qscore.scoring.work"]
    with (
        work.work_folder(tmp_path / "s.parquet", {}, resume=True),
        pytest.raises(QScoreError, match="another process is writing it"),
    ):
        score(table, tmp_path / "s.parquet", epsilon=3.0)


@pytest.mark.parametrize("step", ["before the features", "between", "after the scores"])
@pytest.mark.parametrize("kind", ["score", "rescore"])
def test_a_kill_while_the_outputs_are_moved_is_repaired(tmp_path, table, monkeypatch, step, kind):
    score(table, tmp_path / "whole.parquet", epsilon=3.0)
    if kind == "rescore":
        score(tmp_path / "whole.parquet", tmp_path / "other.parquet", lower=0.2)
    source, expected = (table, "whole") if kind == "score" else (tmp_path / "whole.parquet", "other")
    options = {"epsilon": 3.0} if kind == "score" else {"lower": 0.2}
    replace = type(tmp_path).replace

    def killed(self, target):
        moved = self.parent.name == ".s.parquet.work" and not self.name.startswith(".")
        if moved and self.name == ("features.parquet" if step == "before the features" else "scores.parquet"):
            if step == "after the scores":
                replace(self, target)
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        score(source, tmp_path / "s.parquet", **options)
    monkeypatch.setattr(type(tmp_path), "replace", replace)
    monkeypatch.setattr(spill, "scan", lambda *_, **__: pytest.fail("scanned again"))
    if step == "after the scores":
        with pytest.raises(QScoreError, match="s.parquet exists"):
            score(source, tmp_path / "s.parquet", **options)
    else:
        score(source, tmp_path / "s.parquet", **options)
    assert written(tmp_path / "s.parquet") == written(tmp_path / f"{expected}.parquet")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a defect"), OSError(5, "Input/output error")])
def test_whatever_is_no_refusal_keeps_the_scans(tmp_path, table, monkeypatch, error):
    calls = interrupted_after(monkeypatch, 3, error)
    with pytest.raises((type(error), QScoreError)):
        score(table, tmp_path / "s.parquet", epsilon=3.0)
    score(table, tmp_path / "s.parquet", epsilon=3.0)
    assert sum(calls) == 200 + 40


def test_changed_metadata_begins_anew(tmp_path, relu_table, monkeypatch):
    folder = tmp_path / "e"
    folder.mkdir()
    np.save(folder / "0.npy", relu_table)
    monkeypatch.setattr(formats, "BATCH_BYTES", 20 * 64 * 4)
    monkeypatch.setattr(formats, "SEGMENT_BYTES", 20 * 64 * 4)
    monkeypatch.setattr(embeddings, "PART_BYTES", 1)
    for prefix, error in (("old", KeyboardInterrupt()), ("new", None)):
        pq.write_table(pa.table({"id": [f"{prefix} {i}" for i in range(200)]}), folder / "0.parquet")
        if error:
            interrupted_after(monkeypatch, 4, error)
            with pytest.raises(KeyboardInterrupt):
                score(folder, tmp_path / "s.parquet", epsilon=3.0)
        else:
            score(folder, tmp_path / "s.parquet", epsilon=3.0)
    ids = pq.read_table(tmp_path / "s.parquet").column("id").to_pylist()
    assert ids == [f"new {i}" for i in range(200)]


def test_a_killed_compress_goes_on_and_leaves_nothing(tmp_path, table, monkeypatch):
    compress(table, tmp_path / "whole.parquet", epsilon=3.0)
    calls = interrupted_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compress(table, tmp_path / "s.parquet", epsilon=3.0)
    compress(table, tmp_path / "s.parquet", epsilon=3.0)
    assert sum(calls) == 200 + 40
    assert (tmp_path / "s.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not list(tmp_path.glob(".*"))


SLOW_SCAN = """
import os, signal, sys
import qscore.scoring.spill as spill
from qscore.tables import embeddings, formats
from qscore import score

formats.BATCH_BYTES = formats.SEGMENT_BYTES = 20 * 64 * 4
embeddings.PART_BYTES = 40 * 64 * 4
budget, place = int(sys.argv[3]), {"seen": 0}


def killer(function):
    def counted(*args, **options):
        place["seen"] += 1
        if place["seen"] == budget:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return counted


# Every call that touches the disk, or scans, is a place to die at.
spill.scan, os.fsync, os.replace = killer(spill.scan), killer(os.fsync), killer(os.replace)
for name in ("replace", "unlink", "mkdir"):
    import pathlib
    setattr(pathlib.Path, name, killer(getattr(pathlib.Path, name)))
score(sys.argv[1], sys.argv[2], epsilon=3.0)
print(place["seen"])
"""


def run(source, out, budget):
    return subprocess.run(
        [sys.executable, "-c", SLOW_SCAN, source, out, str(budget)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing(tmp_path, signed, kills):
    unbroken = run(signed, tmp_path / "whole.parquet", 0)
    places = int(unbroken.stdout)
    chance = random.Random(0)
    died = 0
    for number in range(kills):
        out = tmp_path / f"s{number}.parquet"
        # Twice in a row, then to the end.
        for _ in range(2):
            died += run(signed, out, chance.randrange(1, places + 1)).returncode == -signal.SIGKILL
        if not out.exists():
            last = run(signed, out, 0)
            assert last.returncode == 0, last.stderr
        assert written(out) == written(tmp_path / "whole.parquet")
    assert died >= kills
    assert not list(tmp_path.glob(".*.work"))
