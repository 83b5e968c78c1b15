import json
import shlex

import pytest
from reference.study_results import everything
from typer.testing import CliRunner

from qscore.cli.app import app


@pytest.fixture(autouse=True)
def leave_logging_alone(monkeypatch):
    monkeypatch.setattr("qscore.cli.verb._send_to_standard_error", lambda _: None)


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def test_help_has_an_example():
    text = " ".join(run("--help").stdout.split())
    assert "qscore reproduce --images train.npz --test-images test.npz --stage curve" in text.split("Example:")[1]


def test_options_arrive(tmp_path, monkeypatch):
    calls = []

    def reproduce(*arguments, **options):
        calls.append((arguments, options))
        refused = {"small-curve-simclr-512-seed0": "no reason"}
        return {"done": ["a"], "left": ["b"], "refused": refused, "out_of_time": True, "page": "results.md"}

    monkeypatch.setattr("qscore.study.reproduce.reproduce", reproduce)
    options = (
        "--images a.npz --test-images b.npz --methods simclr,byol --scale medium --stage curve --classes imagenet100 "
        "--checkpoint simclr=a.pth --checkpoint byol=b.pth --minutes 9 --processes 3 --seed 2 --device cpu --devices 4 "
        "--workers 1 --set curve_epochs=8 --set wide_backbone=none --set paper_rate=1e-4"
    )
    done = run(*shlex.split(options), "--out", tmp_path)
    assert done.exit_code == 1, done.stderr  # since a unit was refused
    assert calls == [
        (
            ("a.npz", tmp_path),
            {
                "test_images": "b.npz",
                "methods": "simclr,byol",
                "scale": "medium",
                "stage": "curve",
                "overrides": {"curve_epochs": 8, "wide_backbone": None, "paper_rate": 1e-4},
                "classes": "imagenet100",
                "checkpoints": {"simclr": "a.pth", "byol": "b.pth"},
                "minutes": 9.0,
                "processes": 3,
                "seed": 2,
                "device": "cpu",
                "devices": 4,
                "workers": 1,
                "train_only": None,
            },
        )
    ]
    text = " ".join(done.stdout.split())
    for words in (
        "1 finished, 1 left.",
        "Left out: small-curve-simclr-512-seed0: no reason",
        "The time is up",
        "Page: ",
    ):
        assert words in text


def test_the_page_is_written_without_images(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps(everything()[0]))
    done = run("--page", "--out", tmp_path)
    assert done.exit_code == 0 and (tmp_path / "results.md").read_text().startswith("# Results")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --images to learn from, or --page to write the page anew"),
        (["--images", "nowhere"], "images 'nowhere': expected one of"),
        (["--images", "digits", "--set", "curve_epoch=3"], "unknown setting 'curve_epoch'"),
        (["--images", "digits", "--stage", "curves"], "stage 'curves': expected all, or some of curve"),
        (["--images", "digits", "--checkpoint", "simclr"], "--checkpoint 'simclr': expected METHOD=SPEC"),
        (["--export", "there"], "expected result files in"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path):
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 1 and done.stdout == ""
    assert [message in line for line in done.stderr.splitlines() if line.startswith("error: ")] == [True]
