"""The results page: what the result files say, and nothing else, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qscore._files import atomic_path
from qscore.study.reproduce import tables
from qscore.study.reproduce.beside import curve_sentences, shapes_sentences, strength_sentence
from qscore.study.reproduce.chart import curve_points, shapes_points, write_chart, write_shapes_chart
from qscore.study.reproduce.results import FOLDER, SCALES, read_results
from qscore.study.reproduce.sentences import claim_lines, repair_sentence, settings_sentence, terms_sentence
from qscore.study.reproduce.tables import number
from qscore.study.reproduce.verdicts import CLAIMS, MISSING, ON_SHAPES, judge

__all__ = ["CHART", "PAGE", "render_page", "write_page"]

PAGE, CHART, SHAPES_CHART = "results.md", "results.svg", "results-shapes.svg"
Found = Mapping[str, Any]
TITLES = {
    "curve": "From weak to strong: Q along a training",
    "repair": "Repair: the regulariser against its controls",
    "methods": "All methods alike",
    "shapes": "Drawn shapes: attributes and masks that are known",
    "sensitivity": "Sensitivity to the settings of Q",
}
INTRODUCTION = """# Results

The ten claims of Kalibhat et al. (AAAI 2024), put to the test. This page is made from the result files in `results/` by
`make results`; verdicts follow from rules that were fixed before anything was measured
(`qscore.study.reproduce.verdicts`). No test label was used to choose anything. Brackets hold 95 % bootstrap intervals
over test images; for C3 and the table of where features look, over features. They speak of other images or features of
that kind, not of other encoders."""
GLOSSARY = (
    "An image's *highly active* features are those more than *epsilon* standard deviations above the mean of its "
    "representation. *D*, the discriminative features, are those whose activation rate, the share of training images "
    "in which they are highly active, ranks between the 50th and the 95th percentile; *Q* is the mean deviation over "
    "an image's highly active features of D, *coverage* the share of images that have any, *Q without D* the same "
    "over all highly active features, *Q with a random D* over random features, as many. *Z* is an image's highest "
    "deviation in standard deviations, and *Q1* version 1's score, Z over the L1 norm of the representation at unit "
    "length. AUROC, average precision (AP) and AURC (where low is good) ask how well a score puts images that a "
    "linear probe classifies correctly above all others. The page *The method* of the documentation has the formulas."
)
READING = (
    "A *case* is an encoder, or one of its fine-tunings; *controls*, a random and a supervised encoder, are judged by"
    " the same rules, but are no cases. A claim holds weakly in a case if the *decisive* conditions of its rule are "
    "met, and holds if those *asked beyond* are met too; as a whole it holds if it does in three quarters of the "
    "cases that can be tested, and weakly if it does at least weakly in half. All verdicts are at the automatic "
    "epsilon, which is this library's; the paper's is 4. *Not yet run*: no result answers the claim at that scale, or"
    " its run has not got that far; the commands are at the end. *Unfinished* results are shown as far as they go. "
    "*Undertrained*: the probe was still rising at the end of its schedule, from the last but one checkpoint to the "
    "last by more than a standard error of the paired difference. A flat end does not mean trained out: a cosine "
    "schedule, whose rate falls to 0, flattens any training."
)
CHART_TEXT = "AUROC of Q and its main rivals against probe accuracy, along each training"
SHAPES_TEXT = "Where each feature looks, against what it carries"


def write_page(folder: str | Path) -> Path:
    """Write ``results.md`` and its charts, ``results.svg`` and ``results-shapes.svg``, from ``results`` in a folder.

    Parameters
    ----------
    folder : str or Path
        Such as the ``out`` of a reproduction, or ``docs``.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    QScoreError
        If a result cannot be read, or the page not written.
    """
    folder = Path(folder)
    results = read_results(folder / FOLDER)
    if rows := curve_points(results):
        write_chart(rows, folder / CHART)
    if rows := shapes_points(results):
        write_shapes_chart(rows, folder / SHAPES_CHART)
    with atomic_path(folder / PAGE) as file:
        file.write_text(render_page(results))
    return folder / PAGE


def render_page(results: Sequence[Found]) -> str:
    """Return the page; what was not run is said to be "not yet run".

    Parameters
    ----------
    results : sequence of mapping
        As `read_results` returns them.
    """
    by_scale = {scale: [result for result in results if result["scale"] == scale] for scale in SCALES}
    parts = [INTRODUCTION, "## Verdicts", _lines(_verdict_table(by_scale))]
    parts += [READING, GLOSSARY]
    for scale, found in by_scale.items():
        if found:
            parts += _scale(scale, found)
    parts += ["## How to run it", *_how_to(by_scale)]
    return "\n\n".join(parts) + "\n"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _verdict_table(by_scale: Mapping[str, Sequence[Found]]) -> list[str]:
    judged = {scale: judge(found) for scale, found in by_scale.items()}
    rows = []
    for name, claim in CLAIMS.items():
        verdicts = [judged[scale][name][0] for scale in SCALES]
        rows.append(f"| {name} | {claim.title} | {claim.paper or tables.NOTHING} | {' | '.join(verdicts)} |")
    head = f"| | claim | in the paper | {' | '.join(SCALES)} |"
    return [head, "| :-- | :-- | :-- | " + " | ".join([":--"] * len(SCALES)) + " |", *rows]


def _scale(scale: str, results: Sequence[Found]) -> Iterator[str]:
    yield f"## Scale {scale}"
    yield _where(results)
    yield settings_sentence(results)
    yield _lines([*claim_lines(results)])
    stages = {stage: [result for result in results if result["stage"] == stage] for stage in TITLES}
    for stage, title in TITLES.items():
        yield f"### {title}"
        yield from SECTIONS[stage](stages[stage]) if stages[stage] else [f"{MISSING.capitalize()}."]
        if notes := tables.footnotes(stages[stage]):
            yield _lines(["Cannot be tested, or is missing:", "", *notes])
    yield "### Commands"
    yield (
        "Each command also needs `--out FOLDER`. Minutes are those of the command; what an earlier one had computed is "
        "not counted."
    )
    yield _lines(tables.commands(results))


def _where(results: Sequence[Found]) -> str:
    """Say what was computed on what, in one paragraph."""
    images = {
        f"{number(of['train']['n'], ',')} training images ({of['train']['name']}) and "
        f"{number(of['test']['n'], ',')} test images "
        f"({of['test']['name']})"
        for of in (result["images"] for result in results)
    }
    places = {
        f"{of['device']}, {number(of['cores'], 'g')} cores, {of['processor']}"
        for of in (result["hardware"] for result in results)
    }
    versions = {", ".join(f"{name} {number}" for name, number in result["software"].items()) for result in results}
    hours = sum(result["seconds"] or 0 for result in results) / 3600
    return (
        f"{'; '.join(sorted(images))}. Computed on {'; '.join(sorted(places))}, with {'; '.join(sorted(versions))}; "
        f"{hours:.1f} hours in all, without what the table of commands says is not counted."
    )


def _curve(results: Sequence[Found]) -> Iterator[str]:
    if answers := [*curve_sentences(results)]:
        yield _lines([f"- {said}" for said in answers])
    if curve_points(results):
        yield f"![{CHART_TEXT}]({CHART})"
    first = any(point["epoch"] == 0 for result in results for point in result["found"].get("checkpoints") or ())
    initial = "; epoch 0 is the random initialisation" if first else ""
    yield (
        f"Epsilon is automatic, fitted on the training rows{initial}. The paper gives average precision: up to 0.90 "
        "for version 1's score, and 0.9145 (ImageNet-100) and 0.7878 (ImageNet-1K) for Q. That of a coin equals the "
        "probe's accuracy, or, for wrong rows, its error."
    )
    yield _lines(tables.curve(results))
    yield "All scores on the last checkpoint of each:"
    yield _lines(tables.rivals(results))


def _repair(results: Sequence[Found]) -> Iterator[str]:
    yield (
        "The paper reports up to +5.8 % (ImageNet-100) and +3.7 % (ImageNet-1K). The two gradients are those on the "
        "representations, over that of the self-supervised loss, means over the fine-tuning; Lasso has a norm term "
        "alone."
    )
    for result in results:
        for name, rate in (result["found"].get("rates") or {}).items():
            yield repair_sentence(tables.label(result), name, rate)
            yield _lines(tables.repair(rate))
            if said := terms_sentence(rate):
                yield said


def _methods(results: Sequence[Found]) -> Iterator[str]:
    yield (
        "C6 compares accuracies of closed-form ridge, not of the probe in the second column; the paper keeps 60 % of "
        "the features. C7 and C8: Q-Score regularisation against plain fine-tuning."
    )
    yield from map(_lines, tables.methods(results))
    if said := strength_sentence(results):
        yield said


def _shapes(results: Sequence[Found]) -> Iterator[str]:
    numbers = "; ".join(f"{name}, {CLAIMS[name].number}" for name in ON_SHAPES)
    yield f"Main numbers: {numbers}."
    yield _lines(tables.shapes(results))
    if shapes_points(results):
        yield f"![{SHAPES_TEXT}]({SHAPES_CHART})"
        yield (
            "A point is a feature, on images whose backgrounds are drawn evenly: to the right those that tell more of "
            "the shape than of the background's texture, above those that look more at the shape than beside it."
        )
        if said := " ".join(shapes_sentences(results)):
            yield said
        yield _lines(tables.scatter(results))


def _sensitivity(results: Sequence[Found]) -> Iterator[str]:
    single, chosen = tables.sensitivity(results)
    n = sum(len(result["found"]["sources"]) for result in results)
    resamples = {number(of, "g") for result in results if (of := result["settings"].get("resamples"))}
    drawn = f" Intervals are of {' or '.join(sorted(resamples))} resamples." if resamples else ""
    yield (
        f"Mean AUROC over {n} encoders. The first two lines are the paper's setting (epsilon 4, band 50-95, raw H) and "
        "the same with automatic epsilon. Epsilon 2 and 3 change the first line, all others but the last two one "
        f"thing in the second. The last two are version 1's score, which has neither epsilon nor band.{drawn}"
    )
    yield _lines(single)
    yield (
        'A setting chosen for a method by the AUROC on held-out *training* rows of all other methods is "label-free at '
        'use": there it needs no label, and no test label chose it.'
    )
    yield _lines(chosen)


SECTIONS = {
    "curve": _curve,
    "repair": _repair,
    "methods": _methods,
    "shapes": _shapes,
    "sensitivity": _sensitivity,
}


def _how_to(by_scale: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    sources = {
        "small": "--images train-0.npz --test-images test.npz",
        "medium": "--images 'train-*.npz' --test-images test.npz --processes 4",
        "paper": "--images imagenet/train --test-images imagenet/val --devices 8",
    }
    yield (
        "Each stage of a method is a unit of its own: `--stage` and `--methods` choose, and the same command continues "
        "where it stopped."
    )
    lines = [
        f"qscore reproduce {options} --scale {scale} --out runs/{scale}" + ("" if by_scale[scale] else f"  # {MISSING}")
        for scale, options in sources.items()
    ]
    yield "```console\n" + "\n".join(lines) + "\n```"
