"""Killed without warning, at whatever place: the tables come out as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from reference.tables import damage, table_bytes

from qscore.embedding import skipped_path, views_path

# Every call that touches the disk, and every forward pass, is a place to die at. Each run is a fork of one process that
# has loaded the libraries and computed nothing yet.
SCRIPT = """
import os, pathlib, random, signal, sys
from reference.tables import make_encoder
from qscore import embed
from qscore.embedding import network, run
from qscore.tables import embeddings

run.SHARD_ROWS = 4
photos, folder, kills, replaces = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
place, budget = 0, 0


def killer(function):
    def counted(*args, **options):
        global place
        place += 1
        if place == budget:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return counted


os.fsync, os.replace = killer(os.fsync), killer(os.replace)
network.Network.__call__ = killer(network.Network.__call__)
embeddings.pq.write_table = killer(embeddings.pq.write_table)
for name in ("replace", "unlink", "mkdir", "rmdir"):
    setattr(pathlib.Path, name, killer(getattr(pathlib.Path, name)))


def forked(out, dies_at, seed=0):
    global budget
    budget = dies_at
    pid = os.fork()
    if pid == 0:
        try:
            embed(photos, make_encoder(seed), out, batch_size=2, views=2, device="cpu", overwrite=replaces)
            (folder / "places").write_text(str(place))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


chance = random.Random(0)
if replaces:
    assert forked(folder / "whole", 0, seed=1) == 0
assert forked(folder / "whole", 0) == 0
places = int((folder / "places").read_text())
died = 0
while died < kills:
    out = folder / f"e{died}"
    if replaces:
        assert forked(out, 0, seed=1) == 0
    for _ in range(2):  # twice in a row, then to the end
        status = forked(out, chance.randrange(1, places + 1))
        assert status in (0, signal.SIGKILL), status
        died += status == signal.SIGKILL
    assert forked(out, 0) == 0
    print(out)
print(places, died)
"""


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing(tmp_path, photos, kills, replaces):
    damage(photos, 0, 4, 5, 6, 7)
    out = tmp_path / "out"
    out.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, photos, out, str(kills), str(replaces)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *resumed, last = ran.stdout.splitlines()
    places, died = map(int, last.split())
    assert died >= kills and places > 20
    for name in resumed:
        broken = Path(name)
        for place in (lambda path: path, views_path):
            assert table_bytes(place(broken)) == table_bytes(place(out / "whole"))
            assert not [path for path in place(broken).iterdir() if path.name.startswith(".")]
        assert skipped_path(broken).read_bytes() == skipped_path(out / "whole").read_bytes()
