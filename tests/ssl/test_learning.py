"""Whether each method learns: the trainings of the table in `benchmarks/README.md`, held to what they should show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qscore.ssl.methods import METHODS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_training_beats_its_own_beginning_beyond_the_seeds_spread(tmp_path, name):
    command = [sys.executable, ROOT / "benchmarks" / "methods.py", "--methods", name, "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(file.read_text()) for file in tmp_path.rglob("result.json")]
    assert len(runs) == 3
    before, after = ([run[when]["knn"] for run in runs] for when in ("random", "trained"))
    assert min(after) > max(before)
    assert all(run["trained"]["rankme"] > run["r"] / 10 for run in runs)  # collapsed, it would be near 1
