"""The tables of the results page, in Markdown, made from result files alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qscore.evaluate.scores import SCORES
from qscore.study.reproduce.choices import choose_settings, mean_by_factor
from qscore.study.reproduce.sensitivity import AUTOMATIC, BANDS, EPSILONS, PAPERS, SCALINGS
from qscore.study.reproduce.verdicts import cases

__all__ = ["commands", "curve", "markdown", "methods", "repair", "rivals", "scatter", "sensitivity", "shapes"]

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


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines; the first column to the left, all others to the right.

    Examples
    --------
    >>> markdown(["a", "b"], [["x", "1"]])
    ['| a | b |', '| :-- | --: |', '| x | 1 |']
    """
    marks = [":--", *["--:"] * (len(columns) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (list(columns), marks, *rows)]


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number, or a dash where there is none."""
    return NOTHING if value is None else f"{value:{form}}"


def interval(of: Found | None, form: str = ".3f", scale: float = 1.0) -> str:
    """Return a number with its interval in brackets."""
    if of is None or of["value"] is None:
        return NOTHING
    value, low, high = (None if of[name] is None else scale * of[name] for name in ("value", "low", "high"))
    return f"{number(value, form)} ({number(low, form)}, {number(high, form)})"


def label(result: Found) -> str:
    """Return what to call an encoder in a table."""
    return str(result["name"]) + (f", seed {result['seed']}" if result["seed"] else "")


def curve(results: Sequence[Found]) -> list[str]:
    """Return one row for each checkpoint: accuracy, coverage, and AUROC of Q and its main rivals."""
    titles = [SHORT.get(name, TITLES[name]) for name in MAIN]
    rows = []
    for result in results:
        for point in result["found"]["checkpoints"]:
            scores = point["scores"]
            aurocs = {name: scores[name]["auroc"] if name in scores else None for name in MAIN}
            first = interval(aurocs.pop("q_score"))
            cells = [first, *(NOTHING if of is None else number(of["value"]) for of in aurocs.values())]
            mark = " (at chance)" if point["undefined"] else ""
            rows.append(
                [
                    label(result) + ("" if result["complete"] else " (unfinished)"),
                    str(point["epoch"]),
                    f"{100 * point['accuracy']:.1f}{mark}",
                    number(point["epsilon"], "g"),
                    number(None if point["coverage"] is None else 100 * point["coverage"], ".1f"),
                    *cells,
                    number(scores["q_score"]["ap_correct"]["value"]) if scores else NOTHING,
                ]
            )
    return markdown(["encoder", "epoch", "probe, %", "epsilon", "coverage, %", *titles, "AP of Q"], rows)


def rivals(results: Sequence[Found]) -> list[str]:
    """Return one row for each score: its AUROC on the last checkpoint of each curve."""
    last = {label(result): result["found"]["checkpoints"][-1]["scores"] for result in results}
    rows = [
        [score.title, *(interval(scores.get(score.name, {}).get("auroc")) for scores in last.values())]
        for score in SCORES
        if any(score.name in scores for scores in last.values())
    ]
    return markdown(["AUROC of", *last], rows)


def repair(rate: Found) -> list[str]:
    """Return one row for each arm at one learning rate."""
    start = rate["start"]
    rows = [["start", number(100 * start["accuracy"]["value"], ".2f"), *[NOTHING] * 5, *_quality(start)]]
    for name, arm in rate["arms"].items():
        metrics, of = arm["metrics"], rate["differences"].get(name, {})
        plain = of.get("plain", {}).get("accuracy")
        accuracy = metrics.get("accuracy")
        rows.append(
            [
                arm["title"],
                number(None if accuracy is None else 100 * accuracy["value"], ".2f"),
                number(None if not accuracy or accuracy["seeds_sd"] is None else 100 * accuracy["seeds_sd"], ".2f"),
                interval(plain, "+.2f", 100),
                number(None if plain is None else 100 * plain["relative"]["value"], "+.2f"),
                interval(of.get("lr0", {}).get("accuracy"), "+.2f", 100),
                interval(of.get("random-d", {}).get("accuracy"), "+.2f", 100),
                *_quality(metrics),
            ]
        )
    columns = ["arm", "probe, %", "sd of seeds", "points on plain", "relative, %", "on rate 0", "on random D"]
    return markdown([*columns, "AUROC of Q", "Q / sigma", "Hoyer", "zeros, %"], rows)


def _quality(metrics: Found) -> list[str]:
    cells = [number(metrics.get(name, {}).get("value")) for name in ("auroc", "q_over_sigma", "hoyer")]
    zeros = metrics.get("zeros", {}).get("value")
    return [*cells, number(None if zeros is None else 100 * zeros, ".2f")]


def methods(results: Sequence[Found]) -> list[str]:
    """Return one row for each method: its probe, AUROC of Q, verdicts, and what fine-tuning did."""
    rows = []
    for result in results:
        found = result["found"]
        verdicts = [case.verdict for claim in ("C1", "C2", "C5", "C6") for case in cases(claim, [result])]
        point = next((p for p in found["compression"] or () if p["keep"] == 0.6), None)
        tuned = found.get("tuned", {}).get("differences", {}).get("qscore", {}).get("plain", {})
        rise = found["rise"]
        rows.append(
            [
                label(result),
                f"{100 * found['accuracy']:.1f}",
                NOTHING if rise is None else "yes" if rise["rising"] else "no",
                interval(found["scores"].get("q_score", {}).get("auroc")),
                *verdicts[:3],
                NOTHING if point is None else f"{100 * point['change']:+.1f}",
                verdicts[3],
                interval(tuned.get("accuracy"), "+.2f", 100),
                interval(tuned.get("hoyer"), "+.4f"),
            ]
        )
    columns = ["method", "probe, %", "undertrained", "AUROC of Q", "C1", "C2", "C5"]
    columns += ["points at keep 0.6", "C6", "C7: points on plain", "C8: Hoyer on plain"]
    return markdown(columns, rows)


def shapes(results: Sequence[Found]) -> list[str]:
    """Return one row for each method and claim."""
    rows = []
    for result in results:
        for claim in ("C3", "C4", "C9", "C10"):
            for case in cases(claim, [result]):
                numbers = {"value": case.value, "low": case.low, "high": case.high}
                rows.append([label(result), claim, case.verdict, interval(numbers, "+.4f")])
    return markdown(["method", "claim", "verdict", "main number"], rows)


def scatter(results: Sequence[Found]) -> list[str]:
    """Return one row for each method: whether what features carry goes with where they look."""
    places = {"free": "backgrounds drawn evenly", "start": "backgrounds tied to the class"}
    rows = []
    for result in results:
        for place, title in places.items():
            of = result["found"].get("explained", {}).get(place, {}).get("scatter")
            if of:
                rows.append(
                    [label(result), title, str(of["carries_class"]["n"]), interval(of["carries_class"], "+.3f")]
                )
    return markdown(["method", "images", "features", "Spearman's correlation"], rows)


def sensitivity(results: Sequence[Found]) -> Iterator[list[str]]:
    """Yield two tables: the mean AUROC of single changes of the setting, and what is label-free at use."""
    single = {"paper's setting": PAPERS, "epsilon auto": AUTOMATIC}
    single |= {f"epsilon {e}": PAPERS.replace("epsilon 4", f"epsilon {e}") for e in EPSILONS if e not in ("4", "auto")}
    single |= {f"band {b}": AUTOMATIC.replace("50-95", b) for b in BANDS if b != "50-95"}
    single |= {f"{s} H": AUTOMATIC.replace("raw", s) for s in SCALINGS if s != "raw"}
    single |= {"Q / sigma": f"{AUTOMATIC}/sigma", "v1": "raw, v1", "v1 of standardised H": "standardised, v1"}
    means = mean_by_factor(results, list(single.values()))
    yield markdown(["setting", "mean AUROC"], [[name, number(means[setting])] for name, setting in single.items()])
    rows = [
        [
            choice.source,
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
    rows = [
        [
            f"{result['stage']} {label(result)}",
            f"{result['seconds'] / 60:.0f}" + ("" if result["trained_here"] else ", training not counted"),
            f"`{result['command']}`",
        ]
        for result in results
    ]
    return ["| result | minutes | command |", "| :-- | --: | :-- |", *(f"| {' | '.join(row)} |" for row in rows)]
