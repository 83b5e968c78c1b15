import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qscore.cli.app import app


@pytest.fixture(autouse=True)
def leave_logging_alone(monkeypatch):
    monkeypatch.setattr("qscore.cli.verb._send_to_standard_error", lambda _: None)


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    q = rng.random(1000)
    pq.write_table(pa.table({"id": [f"i{k}" for k in range(1000)], "q_score": q, "twice": 2 * q}), "scores.parquet")
    lines = [f"i{k},{int(rng.random() < q[k])}" for k in range(300)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,ok", *lines]))
    return ["scores.parquet", "--labels", "labels.csv", "--correct-column", "ok", "--out", "c.parquet"]


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_help_has_an_example():
    assert "qscore calibrate scores.parquet --labels" in run("--help").stdout.split("Example:")[1]


def test_it_prints_map_reliability_threshold_and_price(files):
    done = run(*files, "--error-rate", "0.25", "--labelled", "250")
    text = " ".join(done.stdout.split())
    assert done.exit_code == 0, done.stderr
    for words in (
        "From 250 labelled rows,",
        "the score says more about failure than the base rate: out of fold its Brier score is",
        "Reliability, out of fold (95 % intervals)",
        "predicted ┃ observed",
        "guarantees an error rate of at most 25.0% among accepted rows with 90% confidence",
        "of the 750 unlabelled rows",
        "Of the 50 labelled rows held out",
        "of 1,000 rows accepted: c.parquet",
    ):
        assert words in text
    assert pq.read_table("c.parquet").num_rows == 1000


def test_for_machines(files):
    done = run(*files, "--score", "twice", "--error-rate", "0.25", "--delta", "0.2", "--json")
    data = json.loads(done.stdout)
    assert (data["score"], data["n"], data["n_labelled"], data["held_out"]) == ("twice", 1000, 300, None)
    assert data["threshold"]["delta"] == 0.2 and data["calibration"]["bins"] and len(data["sentences"]) == 2
    assert data["n_accepted"] == pq.read_table("c.parquet")["accepted"].to_numpy().sum()


def test_bad_input_is_one_line(files):
    done = run(*files, "--score", "thrice")
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: scores.parquet: expected a column of numbers 'thrice', got q_score, twice")
    assert run(*files, "--labelled", "0").exit_code == 2
