"""The tables of the results page, in Markdown, made from result files alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qscore.evaluate.scores import SCORES
from qscore.study.reproduce.choices import choose_settings, mean_by_factor
from qscore.study.reproduce.results import titled
from qscore.study.reproduce.rules import because, dig
from qscore.study.reproduce.scales import CONTROLS
from qscore.study.reproduce.sensitivity import AUTOMATIC, BANDS, EPSILONS, PAPERS, SCALINGS
from qscore.study.reproduce.verdicts import CLAIMS, MISSING, ON_SHAPES, Case, cases

__all__ = [
    *("commands", "curve", "footnotes", "interval", "label", "markdown", "methods", "number", "repair", "rivals"),
    *("scatter", "sensitivity", "shapes"),
]

Found = Mapping[str, Any]
MAIN = (
    "q_score",
    "q_without_d",
    "q_random_d",
    "l2_norm",
    "q1",
    "knn_similarity",
    "neighborhood_consistency",
    "softmax",
)
SHORT = {
    "l2_norm": "norm",
    "q_random_d": "random D",
    "neighborhood_consistency": "neighbours",
    "softmax": "softmax (labels)",
}
TITLES = {score.name: score.title for score in SCORES}
NOTHING = "-"
LEAST_SECONDS = 30


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines; the first column to the left, all others to the right.

    Examples
    --------
    >>> markdown(["a", "b"], [["x", "1"]])
    ['| a | b |', '| :-- | --: |', '| x | 1 |']
    """
    marks = [":--", *["--:"] * (len(columns) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (list(columns), marks, *rows)]


def number(value: float | None, form: str = ".3f", scale: float = 1.0) -> str:
    """Return a number, or a dash where there is none."""
    return NOTHING if value is None else f"{value if scale == 1 else scale * value:{form}}"


def interval(of: Found | None, form: str = ".3f", scale: float = 1.0) -> str:
    """Return a number with its interval in brackets."""
    if of is None or of["value"] is None:
        return NOTHING
    value, low, high = (number(of[name], form, scale) for name in ("value", "low", "high"))
    return f"{value} ({low}, {high})"


def label(result: Found) -> str:
    """Return what to call an encoder in a table."""
    return titled(result) + marks(result)


def marks(result: Found) -> str:
    """Return the marks of a result that is a control, or not finished."""
    control = " (control)" if result["method"] in CONTROLS else ""
    return control + ("" if result["complete"] else " (unfinished)")


def footnotes(results: Sequence[Found]) -> list[str]:
    """Return one line for each result and reason why something in its rows is missing."""
    lines = []
    for result in results:
        whats: dict[str, list[str]] = {}
        for what, reason in _missing(result):
            whats.setdefault(reason, []).append(what)
        lines += [f"- {label(result)} ({', '.join(dict.fromkeys(of))}): {reason}." for reason, of in whats.items()]
    return lines


def _missing(result: Found) -> Iterator[tuple[str, str]]:
    found = result["found"]
    for point in found.get("checkpoints") or ():
        if "failed" in point:
            yield f"epoch {number(point['epoch'], 'g')}", because(point["failed"])
    both = (False, True)
    judged = [
        (claim, case) for claim in CLAIMS for control in both for case in cases(claim, [result], controls=control)
    ]
    if "failed" in found and not judged:
        yield "all", because(found["failed"])
    yield from ((claim, case.reason) for claim, case in judged if case.reason)
    for rate in [*(found.get("rates") or {}).values(), found.get("tuned") or {}]:
        for arm in (rate.get("arms") or {}).values():
            for seed, reason in (arm.get("failed") or {}).items():
                yield f"seed {seed} at {number(rate.get('learning_rate'), 'g')}", because(f"{arm['title']}: {reason}")


def curve(results: Sequence[Found]) -> list[str]:
    """Return one row for each checkpoint: accuracy, coverage, and AUROC of Q and its main rivals."""
    titles = [SHORT.get(name, TITLES[name]) for name in MAIN]
    rows = []
    for result in results:
        for point in result["found"].get("checkpoints") or [result["found"]]:
            aurocs = {name: dig(point, "scores", name, "auroc") for name in MAIN}
            first = interval(aurocs.pop("q_score"))
            mark = " (at chance)" if point.get("undefined") else ""
            rows.append(
                [
                    label(result),
                    number(point.get("epoch"), "g"),
                    number(point.get("accuracy"), ".1f", 100) + mark,
                    number(point.get("epsilon"), "g"),
                    number(point.get("coverage"), ".1f", 100),
                    first,
                    *(number(dig(of, "value")) for of in aurocs.values()),
                    number(dig(point, "scores", "q_score", "ap_correct", "value")),
                ]
            )
    return markdown(["encoder", "epoch", "probe, %", "epsilon", "coverage, %", *titles, "AP of Q"], rows)


def rivals(results: Sequence[Found]) -> list[str]:
    """Return one row for each score: its AUROC on the last checkpoint of each curve."""
    last = {label(r): (r["found"].get("checkpoints") or [{}])[-1].get("scores") or {} for r in results}
    rows = [
        [score.title, *(interval(dig(scores, score.name, "auroc")) for scores in last.values())]
        for score in SCORES
        if any(score.name in scores for scores in last.values())
    ]
    return markdown(["AUROC of", *last], rows)


def repair(rate: Found) -> list[str]:
    """Return one row for each arm at one learning rate."""
    start = rate.get("start") or {}
    rows = [["start", number(dig(start, "accuracy", "value"), ".2f", 100), *[NOTHING] * 7, *_quality(start)]]
    for name, arm in (rate.get("arms") or {}).items():
        of = {against: dig(rate, "differences", name, against, "accuracy") for against in ("plain", "lr0", "random-d")}
        ratios = arm.get("gradient_ratios") or {}
        norm = "gradient_ratio" if "gradient_ratio" in ratios else "gradient_ratio_2"
        rows.append(
            [
                arm["title"],
                number(dig(arm, "metrics", "accuracy", "value"), ".2f", 100),
                number(dig(arm, "metrics", "accuracy", "seeds_sd"), ".2f", 100),
                interval(of["plain"], "+z.2f", 100),
                number(dig(of["plain"], "relative", "value"), "+z.2f", 100),
                interval(of["lr0"], "+z.2f", 100),
                interval(of["random-d"], "+z.2f", 100),
                number(dig(ratios, "gradient_ratio_1", "mean")),
                number(dig(ratios, norm, "mean")),
                *_quality(arm["metrics"]),
            ]
        )
    columns = ["arm", "probe, %", "sd of seeds", "points on plain", "relative, %", "on rate 0", "on random D"]
    columns += ["gradient of the Q term", "of the norm term"]
    return markdown([*columns, "AUROC of Q", "Q / sigma", "Hoyer", "zeros, %"], rows)


def _quality(metrics: Found) -> list[str]:
    cells = [number(dig(metrics, name, "value")) for name in ("auroc", "q_over_sigma", "hoyer")]
    return [*cells, number(dig(metrics, "zeros", "value"), ".2f", 100)]


def methods(results: Sequence[Found]) -> list[str]:
    """Return one row for each method: its probe, AUROC of Q, verdicts, and what fine-tuning did."""
    rows = []
    for result in results:
        found = result["found"]
        verdicts = {claim: _verdict(cases(claim, [result])) for claim in ("C1", "C2", "C5", "C6")}
        point = next((p for p in found.get("compression") or () if p["keep"] == 0.6), None)
        tuned = dig(found, "tuned", "differences", "qscore", "plain")
        rising = dig(found, "rise", "rising")
        rows.append(
            [
                label(result),
                number(found.get("accuracy"), ".1f", 100),
                NOTHING if rising is None else "rising: undertrained" if rising else "flat",
                interval(dig(found, "scores", "q_score", "auroc")),
                *(verdicts[claim] for claim in ("C1", "C2", "C5")),
                number(dig(point, "change"), "+z.1f", 100),
                verdicts["C6"],
                interval(dig(tuned, "accuracy"), "+z.2f", 100),
                interval(dig(tuned, "hoyer"), "+z.4f"),
            ]
        )
    columns = ["method", "probe, %", "end of schedule", "AUROC of Q", "C1", "C2", "C5"]
    columns += ["points at keep 0.6 (ridge)", "C6", "C7: points on plain", "C8: Hoyer on plain"]
    return markdown(columns, rows)


def _verdict(found: Sequence[Case]) -> str:
    return found[0].verdict if found else NOTHING


def shapes(results: Sequence[Found]) -> list[str]:
    """Return one row for each method and claim; controls too, though they count for nothing."""
    rows = []
    for result in results:
        control = result["method"] in CONTROLS
        found = [(claim, case) for claim in ON_SHAPES for case in cases(claim, [result], controls=control)]
        for claim, case in found:
            numbers = {"value": case.value, "low": case.low, "high": case.high}
            rows.append([label(result), claim, case.verdict, interval(numbers, "+z.4f")])
        if not found:
            rows.append([label(result), NOTHING, MISSING, NOTHING])
    return markdown(["method", "claim", "verdict", "main number"], rows)


def scatter(results: Sequence[Found]) -> list[str]:
    """Return one row for each method: whether what features carry goes with where they look."""
    places = {"free": "backgrounds drawn evenly", "start": "backgrounds tied to the class"}
    rows = []
    for result in results:
        for place, title in places.items():
            of = dig(result, "found", "explained", place, "scatter", "carries_class")
            if of:
                rows.append([label(result), title, number(of["n"], "g"), interval(of, "+z.3f")])
    return markdown(["method", "images", "features", "Spearman's correlation"], rows)


def sensitivity(results: Sequence[Found]) -> Iterator[list[str]]:
    """Yield two tables: the mean AUROC of single changes of the setting, and what is label-free at use."""
    single = {"paper's setting": PAPERS, "epsilon auto": AUTOMATIC}
    single |= {f"epsilon {e}": PAPERS.replace("epsilon 4", f"epsilon {e}") for e in EPSILONS if e not in ("4", "auto")}
    single |= {f"band {b}": AUTOMATIC.replace("50-95", b) for b in BANDS if b != "50-95"}
    single |= {f"{s} H": AUTOMATIC.replace("raw", s) for s in SCALINGS if s != "raw"}
    single |= {"Q / sigma": f"{AUTOMATIC}/sigma", "v1": "raw, v1", "v1 of standardised H": "standardised, v1"}
    unfinished = {(r["method"], of["source"]) for r in results if not r["complete"] for of in r["found"]["sources"]}
    means = mean_by_factor(results, list(single.values()))
    yield markdown(["setting", "mean AUROC"], [[name, number(means[setting])] for name, setting in single.items()])
    rows = [
        [
            choice.source + (" (unfinished)" if (choice.method, choice.source) in unfinished else ""),
            interval(choice.papers),
            interval(choice.automatic),
            interval(choice.test),
            choice.setting or NOTHING,
        ]
        for choice in choose_settings(results)
    ]
    yield markdown(["encoder", "paper's setting", "epsilon auto", "label-free at use", "which setting that is"], rows)


def commands(results: Sequence[Found]) -> list[str]:
    """Return one row for each result: the command, and the time it took."""
    rows = [[f"{result['stage']} {label(result)}", _minutes(result), f"`{result['command']}`"] for result in results]
    return ["| result | minutes | command |", "| :-- | --: | :-- |", *(f"| {' | '.join(row)} |" for row in rows)]


def _minutes(result: Found) -> str:
    """Return the minutes it took; a dash where nearly all of it was computed elsewhere."""
    seconds, here = result["seconds"], result["trained_here"]
    if seconds is None or (seconds < LEAST_SECONDS and not here):
        return NOTHING
    return f"{seconds / 60:.0f}" + ("" if here else ", training not counted")
