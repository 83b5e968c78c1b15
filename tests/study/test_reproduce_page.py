import json
from pathlib import Path

import pytest
from reference.study_results import everything, measured, result

from qscore import QScoreError
from qscore.study.reproduce import write_page
from qscore.study.reproduce.page import render_page
from qscore.study.reproduce.results import read_results

DOCS = Path(__file__).parents[2] / "docs"
GOLDEN = Path(__file__).parent / "golden_results.md"


def test_the_committed_page_is_made_from_the_committed_results():
    assert (DOCS / "results.md").read_text() == render_page(read_results(DOCS / "results")), "run `make results`"


def test_the_page_of_planted_results_is_as_it_was():
    assert render_page(everything()) == GOLDEN.read_text()


def test_nothing_is_yet_run():
    page = render_page([])
    assert page.count("not yet run |") == 30 and "## Scale" not in page and "| - |" in page


def test_files_become_page_and_chart(tmp_path):
    (tmp_path / "results").mkdir()
    for k, one in enumerate(reversed(everything())):
        (tmp_path / "results" / f"{k}.json").write_text(json.dumps(one))
    page = write_page(tmp_path)
    assert page.read_text() == GOLDEN.read_text()  # whatever the order of the files
    for chart in ("results.svg", "results-shapes.svg"):
        assert (tmp_path / chart).read_text().startswith("<svg")


def test_scales_stand_side_by_side(tmp_path):
    medium = result("methods", "byol", {"rise": None, **measured(), "tuned": {}}, scale="medium")
    page = render_page([*everything(), medium])
    assert "| C1 | correct samples have few, highly deviated features | - | holds | holds | not yet run |" in page
    assert page.index("## Scale small") < page.index("## Scale medium") and "## Scale paper" not in page


def test_an_unfinished_curve_is_marked():
    point = {"epoch": 10, "rise": None, **measured(0.1, undefined="at chance", scores={})}
    page = render_page([result("curve", "simclr-512", {"checkpoints": [point]}, complete=False)])
    assert "| simclr-512 (unfinished) | 10 | 10.0 (at chance) | 2.5 | 97.0 | - | - |" in page


@pytest.mark.parametrize("text", ["{", '{"version": 1}', '{"version": 9, "scale": "small", "stage": "curve", '
                                  '"name": "a", "seed": 0, "found": {}}'])  # fmt: skip
def test_a_file_that_is_no_result_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(QScoreError, match=r"a\.json: cannot read this result: .*; remove it, or make it anew"):
        read_results(tmp_path)
