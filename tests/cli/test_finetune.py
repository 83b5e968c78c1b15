import json

import pytest
from tiny_training import train_method
from typer.testing import CliRunner

from qscore.cli.app import app


@pytest.fixture(autouse=True)
def leave_logging_alone(monkeypatch):
    monkeypatch.setattr("qscore.cli.verb._send_to_standard_error", lambda _: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a tiny training, and lists of images to train and to test on."""
    folder = tmp_path_factory.mktemp("files")
    train_method("simclr", folder / "pre", backbone="small:resnet10-2-r32", epochs=2)
    for name, rows in {"train": range(48), "test": range(100, 140)}.items():
        lines = (f"digits#{k},{k % 3}" for k in rows)
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *lines]))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)])


def common(files, out):
    return [
        *(files / "pre", "--method", "simclr", "--images", files / "train.csv", "--test-images", files / "test.csv"),
        *("--out", out, "--epochs", "1", "--device", "cpu", "--epsilon", "2", "--resamples", "50"),
    ]


def test_help_has_an_example():
    text = " ".join(run("--help").stdout.split())
    assert "qscore finetune encoders/simclr --method simclr" in text.split("Example:")[1]


def test_it_prints_before_and_after(files, tmp_path):
    done = run(*common(files, tmp_path / "t"), "--set", "augment.flip=0")
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in ("40 test rows (95 % intervals)", "before after change", "probe accuracy, %", "Hoyer sparsity"):
        assert words in text
    for words in ("gradient ratio 1", "D: ", "found on 48 training images at epsilon 2", "--compare sets it against"):
        assert words in text
    assert str(tmp_path / "t" / "encoder.safetensors") in "".join(done.stdout.split("\n"))


def test_json_is_the_metrics_file(files, tmp_path):
    done = run(*common(files, tmp_path / "t"), "--regularizer", "none", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "t" / "metrics.json").read_text())


def test_compare_prints_arms_and_verdicts(files, tmp_path):
    arms = ("--compare", "--seeds", "1", "--arms", "lr0,plain,qscore")
    done = run(*common(files, tmp_path / "t"), *arms)
    assert done.exit_code == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "points on plain",
        "Changes against plain fine-tuning",
        "learning rate 0",
        "regularisation lifts the linear probe",
        "D matters: against a random D not tested",
        "C8",
    ):
        assert words in text
    assert json.loads((tmp_path / "t" / "compare.json").read_text())["arms"].keys() == {"lr0", "plain", "qscore"}


def test_arms_that_diverge_are_in_the_table(files, tmp_path):
    done = run(*common(files, tmp_path), "--compare", "--seeds", "1", "--arms", "plain", "--learning-rate", "1e30")
    assert done.exit_code == 0, done.stderr
    assert "plain, seed 0, diverged" in done.stdout and "plain diverged" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "moco"],
            "pre holds the heads of simclr, and the method asked for is moco; fine-tune it by simclr",
        ),
        (["--method", "simclrr"], "did you mean 'simclr'"),
        (["--seeds", "2"], "--seeds and --arms belong to --compare, which was not given"),
        (["--compare", "--regularizer", "lasso"], "--regularizer: with --compare the arms settle it"),
        (["--compare", "--arms", "plane"], "arm 'plane': expected some of lr0, plain"),
        (["--epsilon", "much"], "epsilon: expected a positive number, 'auto' or 'paper', got 'much'"),
        (["--lambda1", "-1"], "lambda1: expected a number of at least 0, got -1.0"),
        (["--set", "lr=1"], "lr: fine-tuning has settings of its own"),
        (["--features", "nowhere.parquet"], "nowhere.parquet: no such file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, files, tmp_path):
    done = run(*common(files, tmp_path / "t"), *arguments)
    assert done.exit_code == 1 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "t").exists()
