"""The results page: what the result files say, and nothing else, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qscore._files import atomic_path
from qscore.evaluate.judgement import FAILS, HOLDS, UNTESTED, WEAKLY
from qscore.study.reproduce import tables
from qscore.study.reproduce.chart import curve_points, shapes_points, write_chart, write_shapes_chart
from qscore.study.reproduce.results import FOLDER, SCALES, read_results
from qscore.study.reproduce.verdicts import CLAIMS, MISSING, Case, judge

__all__ = ["CHART", "PAGE", "render_page", "write_page"]

PAGE, CHART, SHAPES_CHART = "results.md", "results.svg", "results-shapes.svg"
Found = Mapping[str, Any]
PAPERS_SETTING = "ResNet-50 on ImageNet-1K and ResNet-18 on ImageNet-100, trained for hundreds of epochs"
TITLES = {
    "curve": "From weak to strong: does Q fail from weakness, or in principle?",
    "repair": "Repair: the regulariser against its controls",
    "methods": "All methods alike",
    "shapes": "Drawn shapes: attributes and masks that are known",
    "sensitivity": "Sensitivity to the settings of Q",
}
INTRODUCTION = """# Results

The ten claims of Kalibhat et al. (AAAI 2024), put to the test. This page is made from the result files in `results/` by
`make results`; verdicts follow from rules that were fixed before anything was run (`qscore.study.reproduce.verdicts`).
No test label was used to choose anything. Brackets hold 95 % intervals over test rows; they say nothing of other
encoders or images."""
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
    parts += ["A claim that was *not yet run* at a scale has no result file; the command for it is at the end."]
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
    yield _lines([f"- {sentence}" for sentence in _sentences(results)])
    stages = {stage: [result for result in results if result["stage"] == stage] for stage in TITLES}
    for stage, title in TITLES.items():
        yield f"### {title}"
        yield from SECTIONS[stage](stages[stage]) if stages[stage] else [f"{MISSING.capitalize()}."]
    yield "### Commands"
    yield _lines(tables.commands(results))


def _where(results: Sequence[Found]) -> str:
    """Say what was computed on what, in one paragraph."""
    images = {
        f"{of['train']['n']:,} training images ({of['train']['name']}) and {of['test']['n']:,} test images "
        f"({of['test']['name']})"
        for of in (result["images"] for result in results)
    }
    places = {f"{of['device']}, {of['cores']} cores, {of['processor']}" for of in (r["hardware"] for r in results)}
    versions = {", ".join(f"{name} {number}" for name, number in result["software"].items()) for result in results}
    hours = sum(result["seconds"] for result in results) / 3600
    return (
        f"{'; '.join(sorted(images))}. Computed on {'; '.join(sorted(places))}, with {'; '.join(sorted(versions))}; "
        f"{hours:.1f} hours in all, as far as they were counted."
    )


def _sentences(results: Sequence[Found]) -> Iterator[str]:
    """Yield a sentence or two a claim: verdict, numbers, and what differs from the paper's setting."""
    for name, (verdict, found) in judge(results).items():
        claim = CLAIMS[name]
        if not found:
            yield f"**{name}** ({claim.title}): {MISSING}."
            continue
        yield (
            f"**{name}** ({claim.title}): **{verdict}**. {_counted(found)}; {claim.number} {_range(name, found)}. "
            f"{_scope(name, results)}"
        )


def _counted(found: Sequence[Case]) -> str:
    counts = {verdict: sum(case.verdict == verdict for case in found) for verdict in (HOLDS, WEAKLY, FAILS, UNTESTED)}
    words = ", ".join(f"{verdict} in {n}" for verdict, n in counts.items() if n)
    rising = sum(case.undertrained for case in found)
    marked = f", {rising} of them undertrained" if rising else ""
    return f"Of {len(found)} case{'s' if len(found) > 1 else ''}, it {words}{marked}"


def _range(name: str, found: Sequence[Case]) -> str:
    """Return the lowest and the highest main number, each with its interval and encoder."""
    claim = CLAIMS[name]
    known = sorted((case for case in found if case.value is not None), key=lambda case: float(case.value or 0.0))
    if not known:
        return "was not measured"

    def said(case: Case) -> str:
        scale, form = (100.0, f"{claim.sign}.2f") if claim.unit else (1.0, f"{claim.sign}.3f")
        numbers = {"value": case.value, "low": case.low, "high": case.high}
        value, _, rest = tables.interval(numbers, form, scale).partition(" ")
        return f"{value}{claim.unit} {rest.removesuffix(')')}; {case.encoder})"

    return said(known[0]) if len(known) == 1 else f"from {said(known[0])} to {said(known[-1])}"


def _scope(name: str, results: Sequence[Found]) -> str:
    """Say what differs from the paper's setting."""
    stage = "shapes" if name in ("C3", "C4", "C9", "C10") else "repair" if name in ("C7", "C8") else "curve"
    settings = {key: value for result in results for key, value in result["settings"].items()}
    network = str(settings.get("backbone"))
    if stage == "shapes":
        return f"Drawn shapes and {network}, where the paper looks at photographs with {PAPERS_SETTING.split(',')[0]}."
    n = max(result["images"]["train"]["n"] for result in results)
    if stage == "repair":
        epochs = " or ".join(str(settings[key]) for key in ("repair_epochs", "methods_tune_epochs") if key in settings)
        return (
            f"{network} on {n:,} images, {epochs} epochs of fine-tuning by {settings.get('tune_optimizer')}; in the "
            f"paper {PAPERS_SETTING}, and 50 epochs."
        )
    epochs = " and ".join(str(settings[key]) for key in ("curve_epochs", "methods_epochs") if key in settings)
    return f"{network} on {n:,} images for {epochs} epochs; in the paper {PAPERS_SETTING}."


def _curve(results: Sequence[Found]) -> Iterator[str]:
    yield f"![{CHART_TEXT}]({CHART})"
    yield (
        "Epsilon is automatic, fitted on the training rows; epoch 0 is the random initialisation. In the paper, AUROC "
        "of version 1's score is up to 0.90, and average precision of Q 91.45 % (ImageNet-100) and 78.78 % "
        "(ImageNet-1K); that of a coin equals the probe's accuracy."
    )
    yield _lines(tables.curve(results))
    yield "All scores on the last checkpoint of each:"
    yield _lines(tables.rivals(results))


def _repair(results: Sequence[Found]) -> Iterator[str]:
    for result in results:
        for name, rate in result["found"]["rates"].items():
            of = rate["settings"]
            yield (
                f"{tables.label(result)}, the {name} learning rate, {rate['learning_rate']:g}: {len(rate['seeds'])} "
                f"seeds of {of['epochs']} epochs by {of['optimizer']}, {rate['n_discriminative']} features in D at "
                f"epsilon {rate['epsilon']:g}. The paper reports up to +5.8 % (ImageNet-100) and +3.7 % (ImageNet-1K)."
            )
            yield _lines(tables.repair(rate))


def _methods(results: Sequence[Found]) -> Iterator[str]:
    yield (
        "Undertrained: the probe still rose from the last but one checkpoint to the last by more than a standard error "
        "of the paired difference. C7 and C8: Q-Score regularisation against plain fine-tuning. The paper keeps 60 % "
        "of the features."
    )
    yield _lines(tables.methods(results))


def _shapes(results: Sequence[Found]) -> Iterator[str]:
    numbers = "; ".join(f"{name}, {CLAIMS[name].number}" for name in ("C3", "C4", "C9", "C10"))
    yield f"Main numbers: {numbers}."
    yield _lines(tables.shapes(results))
    if shapes_points(results):
        yield f"![{SHAPES_TEXT}]({SHAPES_CHART})"
        yield (
            "A point is a feature, on images whose backgrounds are drawn evenly: to the right those that tell more of "
            "the shape than of the background's texture, above those that look more at the shape than beside it."
        )
        yield _lines(tables.scatter(results))


def _sensitivity(results: Sequence[Found]) -> Iterator[str]:
    single, chosen = tables.sensitivity(results)
    n = sum(len(result["found"]["sources"]) for result in results)
    yield (
        f"Mean AUROC over {n} encoders on test rows; below the first two lines, one thing changes from the setting "
        "with automatic epsilon (of a fixed epsilon, from the paper's)."
    )
    yield _lines(single)
    yield (
        'A setting is "label-free at use" that did best on held-out training rows of all other methods: at use it '
        "needs no label, and no test label chose it."
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
        "medium": "--images 'train-*.npz' --test-images test.npz --minutes 9 --processes 4",
        "paper": "--images imagenet/train --test-images imagenet/val --devices 8",
    }
    yield "Each stage of a method is a unit of its own: `--stage` and `--methods` choose, and the same command goes on."
    lines = [
        f"qscore reproduce {options} --scale {scale} --out runs/{scale}" + ("" if by_scale[scale] else f"  # {MISSING}")
        for scale, options in sources.items()
    ]
    yield "```console\n" + "\n".join(lines) + "\n```"
