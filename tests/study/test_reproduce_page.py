import copy
import json
from itertools import takewhile
from pathlib import Path

import pytest
from reference.study_results import RISING, STILL, compared, everything, explained, measured, number, result

from qscore import QScoreError
from qscore.study.reproduce import write_page
from qscore.study.reproduce.chart import curve_points, shapes_points, write_chart, write_shapes_chart
from qscore.study.reproduce.page import render_page
from qscore.study.reproduce.results import read_results

SHAPES = ("C3", "C4", "C9", "C10")
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


def row(page, *cells):
    """Return the one row of a table that begins with these cells."""
    [found] = [line for line in page.splitlines() if line.startswith(f"| {' | '.join(cells)} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def rows(page, name):
    """Return all rows that begin so."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if f"| {name} |" == line[: len(name) + 4]
    ]


def sentence(page, claim):
    [found] = [line for line in page.splitlines() if line.startswith(f"- **{claim}**")]
    return found


def under(page, claim):
    """Return the lines below a claim's."""
    lines = page.splitlines()
    start = lines.index(sentence(page, claim)) + 1
    return [line.removeprefix("  - ") for line in takewhile(lambda line: line.startswith("  - "), lines[start:])]


def supervised():
    places = {"start": explained({"C4": "holds", "C9": "holds"}), "free": explained({"C3": "does not hold here"})}
    return result("shapes", "supervised", {"rise": None, **measured(), "explained": places})


def in_full():
    """Results of all stages with every kind of number that tables show."""
    full = everything()
    for result_ in full:
        for rate in result_["found"].get("rates", {}).values():
            of = rate["arms"]["qscore"]
            of["gradient_ratios"] = {f"gradient_ratio_{k}": {"first": 0.3, "mean": 0.02 * k} for k in (1, 2)}
            lasso = {"title": "Lasso", "metrics": of["metrics"], "gradient_ratios": {"gradient_ratio": {"mean": 0.4}}}
            rate["arms"]["lasso"] = lasso | {"failed": {}}
    return [*full, supervised(), result("curve", "supervised-512", {"checkpoints": [{"epoch": 5, **measured()}]})]


def numbers(value, path=()):
    """Yield the path of every number in a result, of those that are true or false too."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*path, name))
    elif isinstance(value, int | float):
        yield path


def test_no_missing_number_stops_the_page():
    full = in_full()
    apart = {("version",), ("complete",), ("trained_here",)}
    paths = [(k, path) for k, one in enumerate(full) for path in numbers(one) if path not in apart]
    assert len(paths) > 300
    for k, (*way, last) in paths:
        spoilt = copy.copy(full)
        inner = spoilt[k] = copy.deepcopy(full[k])
        for step in way:
            inner = inner[step]
        inner[last] = None
        page = render_page(spoilt)
        assert "None" not in page and "nan" not in page, (k, way, last)
        assert len(curve_points(spoilt)) + len(shapes_points(spoilt)) >= 10


def test_a_result_without_any_number_is_drawn(tmp_path):
    def emptied(value):
        if isinstance(value, dict):
            return {name: emptied(item) for name, item in value.items()}
        if isinstance(value, list):
            return [emptied(item) for item in value]
        return None if isinstance(value, float) else value

    empty = [one | {"found": emptied(one["found"])} for one in in_full()]
    assert "None" not in render_page(empty) and curve_points(empty) == shapes_points(empty) == []
    points = in_full()[1]["found"]["checkpoints"]
    points[0]["scores"]["q_score"]["auroc"] |= {"low": None, "high": None}
    write_chart(curve_points([result("curve", "simclr-512", {"checkpoints": points})]), tmp_path / "a.svg")
    shapes = in_full()[4]
    shapes["found"]["explained"]["free"]["points"]["looks"][0] = None
    assert [point["feature"] for point in shapes_points([shapes])] == [5, 8]
    write_shapes_chart(shapes_points([shapes]), tmp_path / "b.svg")
    assert all((tmp_path / name).read_text().startswith("<svg") for name in ("a.svg", "b.svg"))


def test_what_failed_keeps_its_row_and_is_told_once():
    failed = {"rise": None, "failed": "all representations are the same."}
    good, bad = {"epoch": 10, "rise": None, **measured()}, {"epoch": 20, "failed": "not finite"}
    refused = {"learning_rate": 2e-4, "refused": "its features are signed"}
    page = render_page(
        [
            result("curve", "vicreg-512", {"checkpoints": [bad | {"epoch": 5}, good]}),
            result("curve", "vicreg-2048", {"checkpoints": [good, bad]}),
            result("methods", "dino", failed),
            result("methods", "byol", {"rise": STILL, **measured(), "tuned": refused}),
            result("shapes", "dino", failed),
        ]
    )
    assert set(row(page, "vicreg-512", "5")[2:]) == set(row(page, "vicreg-2048", "20")[2:]) == {"-"}
    nothing = "cannot be tested"
    assert [set(cells[1:]) for cells in rows(page, "dino")] == [{"-", nothing}] * 2 + [
        {"-", claim, nothing} for claim in SHAPES
    ]
    assert rows(page, "dino")[0][-3:] == [nothing] * 3
    assert rows(page, "byol")[1][3:] == ["-", "-", "-", "-", nothing, "-", "-", nothing]
    assert row(page, "dino", "-", "C9")[3:] == ["cannot be tested", "-"]
    notes = [x for x in page.splitlines() if x.startswith("- ") and "**" not in x and "Does D help?" not in x]
    assert notes == [
        "- vicreg-512 (epoch 5): not finite.",
        "- vicreg-2048 (epoch 20, C1, C2, C5, C6): not finite.",
        "- dino (C1, C2, C5, C6, C7, C8): all representations are the same.",
        "- byol (C7, C8): its features are signed.",
        "- dino (C3, C4, C9, C10): all representations are the same.",
    ]
    assert "3 cases: holds in 1, cannot be tested in 2;" not in sentence(page, "C1")
    assert "4 cases: holds in 2, cannot be tested in 2;" in sentence(page, "C1")
    assert "**cannot be tested**. 2 cases: cannot be tested in 2; change in accuracy" in sentence(page, "C7")


def test_a_diverged_arm_is_told_of():
    rate = compared(seeds=(0.02, 0.02, 0.02))
    rate["arms"]["qscore"]["failed"] = {"2": "the loss is NaN"}
    of = result("repair", "simclr", {"rates": {"paper": rate}})
    assert "\n- simclr (seed 2 at 1e-05): Q-Score: the loss is NaN.\n" in render_page([of])
    rate |= {"differences": {}}
    rate["arms"]["qscore"]["metrics"] = {}
    page = render_page([of])
    assert "\n- simclr (C7, C8, seed 2 at 1e-05): Q-Score: the loss is NaN.\n" in page
    assert set(row(page, "Q-Score")[1:]) == {"-"}


def test_conditions_that_were_not_met_are_named_most_frequent_first():
    low, nought = measured(auroc=(0.56, 0.55, 0.57), gain=-1), measured(auroc=(0.5, 0.4, 0.6))
    found = [
        result("methods", name, {"rise": STILL, **of})
        for name, of in (("byol", nought), ("dino", low), ("moco", low | {"gain_on_norm": number(1)}))
    ]
    assert under(render_page(found), "C5")[:2] == [
        "Decisive and not met: *an AUROC above 0.5* (1 of 3).",
        "Asked beyond and not met: *an AUROC that reaches 0.5735* (3 of 3); *a gain on top of the norm* (1 of 3).",
    ]
    assert "not met" not in " ".join(under(render_page(found), "C6"))
    assert under(render_page(found[1:2]), "C5")[0] == (
        "Asked beyond and not met: *an AUROC that reaches 0.5735*; *a gain on top of the norm*."
    )
    named = measured()
    named["claims"] |= {"verdicts": {"C1": "holds", "C2": "does not hold here"}}
    named["claims"]["conditions"] = {"C2": {"D above the base rate": True, "D above the random sets": False}}
    page = render_page([result("methods", "byol", {"rise": STILL, **named})])
    assert under(page, "C2") == ["Decisive and not met: *D above the random sets*."]


def test_the_terms_of_the_regulariser_stand_beside_it():
    page = render_page(in_full())
    assert rows(page, "Lasso")[0][7:9] == ["-", "0.400"]
    assert rows(page, "Q-Score")[0][7:9] == ["0.020", "0.040"]
    assert (
        "The regulariser's Q term pulls with 0.020 of the self-supervised loss's gradient, its norm term with 0.040. "
        "Against a random D, accuracy differs by +2.00 (+1.50, +2.50) points."
    ) in page
    assert "pulls" not in render_page(everything())


def test_controls_are_shown_and_marked():
    page = render_page(in_full())
    assert [row(page, "supervised (control)", "60.0", claim)[3] for claim in ("C3", "C4", "C9")] == [
        "does not hold here", "holds", "holds",
    ]  # fmt: skip
    assert "| supervised (control) | 60.0 | C10" not in page and "- supervised" not in page
    assert row(page, "random-512 (control)", "0")[2] == "30.0" and row(page, "supervised-512 (control)", "5")
    for claim in ("C3", "C4", "C9"):
        assert "One case; " in sentence(page, claim)


def test_whatever_is_unfinished_is_marked_everywhere():
    page = render_page([one | {"complete": False} for one in in_full()])
    for name in ("simclr-512", "byol", "simclr", "methods-moco", "supervised (control)"):
        assert f"| {name} (unfinished) |" in page and f"| {name} |" not in page
    assert (
        "**simclr (unfinished), the paper's learning rate, 1e-05**" in page and "| shapes simclr (unfinished) |" in page
    )
    assert "simclr (repair, unfinished) at 1e-05" in sentence(page, "C7")
    begun = result("shapes", "simclr", {"rise": STILL, **measured()}, complete=False)
    assert row(render_page([begun]), "simclr (unfinished)")[1:] == ["60.0", "-", "not yet run", "-"]
    assert {point["encoder"] for point in curve_points([in_full()[1] | {"complete": False}])} == {
        "simclr-512 (unfinished)"
    }


def test_epoch_0_is_explained_where_it_is_shown():
    assert "epoch 0 is the random initialisation" in render_page(everything())
    assert "epoch 0" not in render_page(everything()[1:])


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seconds": 29.0, "trained_here": False}, "not counted"),
        ({"seconds": 29.0}, "< 1"),
        ({"seconds": 120.0, "trained_here": False}, "2, training not counted"),
    ],
)
def test_minutes_that_were_spent_elsewhere_are_no_0(changes, shown):
    repair = result("repair", "simclr", {"rates": {"paper": compared()}}, **changes)
    assert row(render_page([repair]), "repair simclr")[1] == shown


def test_the_settings_of_all_results_are_listed():
    def of(stage, name, found, **settings):
        return result(stage, name, found, settings=settings)

    points = {"checkpoints": [{"epoch": 60, "rise": STILL, **measured()}]}
    page = render_page(
        [
            of("curve", "random-8", points, backbone="none"),
            of("curve", "simclr-512", points, backbone="narrow", curve_epochs=60, recipe="cifar"),
            of("curve", "simclr-2048", points, backbone="wide", curve_epochs=60),
            of("methods", "byol", {"rise": STILL, **measured(), "tuned": compared(seeds=(0.02,))},
               backbone="narrow", methods_recipe="auto", methods_epochs=10, methods_tune_epochs=1,
               tune_optimizer="adamw"),
            of("repair", "simclr", {"rates": {"paper": compared()}},
               backbone="narrow", repair_epochs=2, tune_optimizer="adamw"),
        ]
    )  # fmt: skip
    assert (
        "Here: C1, C2, C5, C6: `narrow` and `wide` on 12,500 images for 60 and 10 epochs (recipes: cifar and auto); "
        "C7, C8: `narrow`, 1 and 2 epochs of fine-tuning by adamw on 12,500 images. In the paper: photographs, "
    ) in page
    for claim in ("C7", "C8"):
        assert "2 cases (1 seed each in methods, 2 seeds each in repair): holds in 2;" in sentence(page, claim)


def test_undertrained_is_said_to_be_what_it_is():
    found = [
        result("methods", name, {"rise": rise, **measured()}) for name, rise in (("byol", RISING), ("moco", STILL))
    ]
    page = render_page([*found, result("methods", "dino", {"rise": None, **measured()})])
    assert [rows(page, name)[0][2] for name in ("byol", "moco", "dino")] == ["rising: undertrained", "flat", "-"]
    assert "still rising at the end of its schedule" in page and "does not mean trained out" in page


def test_brackets_are_explained():
    page = render_page([])
    assert "nothing of other encoders or images" not in page
    assert "for C3 and the table of where features look, over features." in page.replace("\n", " ")
    assert "closed-form ridge" in render_page(everything())
