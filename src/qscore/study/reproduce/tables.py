"""The tables of the results page, in Markdown, made from result files alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qscore.evaluate.scores import SCORES
from qscore.study.reproduce.choices import choose_settings, mean_by_factor
from qscore.study.reproduce.results import titled
from qscore.study.reproduce.rules import because, dig
from qscore.study.reproduce.scales import CONTROLS
from qscore.study.reproduce.sensitivity import AUTOMATIC, BANDS, EPSILONS, PAPERS, SCALINGS
from qscore.study.reproduce.verdicts import CLAIMS, MISSING, ON_SHAPES, Case, Claim, cases

__all__ = [
    "commands",
    "curve",
    "footnotes",
    "interval",
    "label",
    "main_number",
    "markdown",
    "methods",
    "number",
    "repair",
    "rivals",
    "scatter",
    "sensitivity",
    "shapes",
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
MEASURED = ("q_score", "q_without_d", "l2_norm", "knn_similarity")
TITLES = {score.name: score.title for score in SCORES}
QUALITY = {"ap_correct": "AP of Q", "ap_wrong": "AP of Q, for wrong", "aurc": "AURC of Q"}
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


def main_number(claim: Claim, case: Case) -> str:
    """Return a case's main number with its interval, in the claim's unit."""
    scale, form = (100.0, f"{claim.sign}z.2f") if claim.unit else (1.0, f"{claim.sign}z.{claim.digits}f")
    value, _, rest = interval({"value": case.value, "low": case.low, "high": case.high}, form, scale).partition(" ")
    return f"{value}{claim.unit} {rest}"


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
                    *(
                        number(dig(point, "scores", "q_score", name, "value"))
                        for name in ("ap_correct", "ap_wrong", "aurc")
                    ),
                ]
            )
    return markdown(["encoder", "epoch", "probe, %", "epsilon", "coverage, %", *titles, *QUALITY.values()], rows)


def _precision(found: Found) -> list[str]:
    return [number(dig(found, "scores", "q_score", name, "value")) for name in QUALITY]


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


def methods(results: Sequence[Found]) -> Iterator[list[str]]:
    """Yield two tables with a row for each method: what Q predicts, and what compression and fine-tuning did."""
    yield markdown(
        ["method", "probe, %", "end of schedule", *(f"AUROC of {SHORT.get(n, TITLES[n])}" for n in MEASURED),
         *QUALITY.values(), "C1", "C2", "C5"],
        [_measured(result) for result in results],
    )  # fmt: skip
    yield markdown(
        ["method", "points at keep 0.6 (ridge)", "C6", "gradient of the Q term", "of the norm term",
         "points on plain", "relative, %", "C7", "Hoyer on plain", "zeros on plain, points", "C8"],
        [_changed(result) for result in results],
    )  # fmt: skip


def _measured(result: Found) -> list[str]:
    found = result["found"]
    rising = dig(found, "rise", "rising")
    aurocs = [interval(dig(found, "scores", MEASURED[0], "auroc"))]
    aurocs += [number(dig(found, "scores", name, "auroc", "value")) for name in MEASURED[1:]]
    return [
        label(result),
        number(found.get("accuracy"), ".1f", 100),
        NOTHING if rising is None else "rising: undertrained" if rising else "flat",
        *aurocs,
        *_precision(found),
        *(_verdict(claim, result) for claim in ("C1", "C2", "C5")),
    ]


def _changed(result: Found) -> list[str]:
    found = result["found"]
    point = next((p for p in found.get("compression") or () if p["keep"] == 0.6), None)
    tuned = dig(found, "tuned", "differences", "qscore", "plain")
    ratios = dig(found, "tuned", "arms", "qscore", "gradient_ratios")
    return [
        label(result),
        number(dig(point, "change"), "+z.1f", 100),
        _verdict("C6", result),
        *(number(dig(ratios, f"gradient_ratio_{k}", "mean"), ".3g") for k in (1, 2)),
        interval(dig(tuned, "accuracy"), "+z.2f", 100),
        number(dig(tuned, "accuracy", "relative", "value"), "+z.2f", 100),
        _verdict("C7", result),
        interval(dig(tuned, "hoyer"), "+z.4f"),
        interval(dig(tuned, "zeros"), "+z.2f", 100),
        _verdict("C8", result),
    ]


def _verdict(claim: str, result: Found) -> str:
    found = cases(claim, [result])
    return found[0].verdict if found else NOTHING


def shapes(results: Sequence[Found]) -> list[str]:
    """Return one row for each method and claim; controls too, though they are no cases."""
    rows = []
    for result in results:
        control = result["method"] in CONTROLS
        probe = number(result["found"].get("accuracy"), ".1f", 100)
        found = [(claim, case) for claim in ON_SHAPES for case in cases(claim, [result], controls=control)]
        for claim, case in found:
            numbers = {"value": case.value, "low": case.low, "high": case.high}
            rows.append([label(result), probe, claim, case.verdict, interval(numbers, "+z.4f")])
        if not found:
            rows.append([label(result), probe, NOTHING, MISSING, NOTHING])
    return markdown(["method", "probe, %", "claim", "verdict", "main number"], rows)


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
    yield markdown(
        ["setting", "mean AUROC, held-out training rows", "mean AUROC, test rows"],
        [[name, *map(number, means[setting])] for name, setting in single.items()],
    )
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
    """Return the minutes it took, unless nearly all of it was computed by another command."""
    seconds, here = result["seconds"], result["trained_here"]
    if seconds is None or (seconds < LEAST_SECONDS and not here):
        return "not counted"
    return (f"{seconds / 60:.0f}" if seconds >= LEAST_SECONDS else "< 1") + ("" if here else ", training not counted")
