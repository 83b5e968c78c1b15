import json

import pytest
from tiny_training import train_method
from typer.testing import CliRunner

from qscore.cli.app import app
from qscore.cli.rank_verb import _without_common


@pytest.fixture(autouse=True)
def leave_logging_alone(monkeypatch):
    monkeypatch.setattr("qscore.cli.verb._send_to_standard_error", lambda _: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a tiny training whose every epoch is kept, and a list of images."""
    folder = tmp_path_factory.mktemp("files")
    train_method("simclr", folder / "pre", backbone="small:resnet10-2-r32", keep_every=1)
    lines = (f"digits#{k},{k % 3}" for k in range(60))
    (folder / "digits.csv").write_text("\n".join(["path,label", *lines]))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["rank", *map(str, arguments)])


def test_help_has_an_example():
    text = " ".join(run("--help").stdout.split())
    assert "qscore rank 'encoders/simclr/checkpoints/epoch-*' --images" in text.split("Example:")[1]


def test_it_prints_order_and_correlations(files, tmp_path):
    pattern = files / "pre" / "checkpoints" / "epoch-*"
    done = run(pattern, "--images", files / "digits.csv", "--out", tmp_path / "r", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in ("By RankMe, best first", "probe, %", "Each criterion against the probe", "regret, points", "near 1"):
        assert words in text
    assert "epoch-0003" in text and (tmp_path / "r" / "rank.json").exists()
    again = run(pattern, "--images", files / "digits.csv", "--out", tmp_path / "r", "--device", "cpu", "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "r" / "rank.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "none of 1 checkpoints can be used; the first: encoder 'nowhere': expected"),
        (["no-*"], "no-*: no checkpoint matches this pattern"),
        (["nowhere", "--by", "rank"], "by 'rank': expected one of rankme"),
        (["nowhere", "--epsilon", "x"], "epsilon: expected a positive number, 'auto' or 'paper', got 'x'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, files):
    done = run(*arguments, "--images", files / "digits.csv")
    assert done.exit_code == 1 and done.stdout == ""
    assert [message in line for line in done.stderr.splitlines() if line.startswith("error: ")] == [True]


def test_names_are_shown_without_what_all_of_them_share():
    assert _without_common(["a/b/c-1", "a/b/c-2"]) == ["c-1", "c-2"]
    assert _without_common(["a/b/c", "a/d/c"]) == ["b/c", "d/c"]
    assert _without_common(["a", "a/b"]) == ["a", "a/b"]
    assert _without_common(["a/b"]) == ["a/b"]
    assert _without_common(["timm:x", "b"]) == ["timm:x", "b"]
