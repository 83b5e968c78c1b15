import re
from pathlib import Path

import lightning.pytorch as lightning
import pytest
from reference.monitor_modules import SoloModule, labelled_batches, quiet, some_images

import qscore

PAGE = Path(__file__).parents[2] / "docs" / "monitor.rst"


def example(number):
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text())
    return re.sub(r"^   ", "", blocks[number], flags=re.M).strip()


@pytest.mark.filterwarnings("ignore:.*does not have many workers which may be a bottleneck")
@pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated")
def test_the_example_with_lightning_runs(tmp_path):
    there = {
        "qscore": qscore,
        "images": some_images(60, 1),
        "module": SoloModule(),
        "loader": labelled_batches(),
        "Trainer": lambda **options: quiet(lightning.Trainer, tmp_path, **options),
    }
    exec(example(0), there)
    assert [found.epoch for found in there["callback"].history] == [4, 9, 14, 19]


def test_the_plain_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = []
    there = {
        "qscore": qscore, "images": some_images(60, 1), "module": SoloModule(), "train_one_epoch": trained.append,
    }  # fmt: skip
    exec(example(1), there)
    assert len(trained) == 3 and len((tmp_path / "quality.csv").read_text().splitlines()) == 4
    assert capsys.readouterr().out.count("\n") == 3


def test_the_thresholds_are_those_of_the_page():
    from qscore.monitor import collapse

    assert (collapse.STD_SHARE, collapse.RANKME_SHARE, collapse.DEAD_SHARE) == (0.05, 0.25, 0.5)
    assert "below 5 % of" in PAGE.read_text() and "below a quarter of" in PAGE.read_text()
    assert "more than half of the features" in PAGE.read_text()
