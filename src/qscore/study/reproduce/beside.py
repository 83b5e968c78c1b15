"""What stands beside the verdicts of the results page: controls, rivals, the paper's setting."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qscore.evaluate.curve import MARGIN
from qscore.evaluate.judgement import FAILS, UNTESTED
from qscore.evaluate.scores import SCORES
from qscore.study.reproduce.rules import RANK, dig
from qscore.study.reproduce.scales import CONTROLS
from qscore.study.reproduce.sensitivity import PAPERS
from qscore.study.reproduce.tables import interval, label, main_number, number
from qscore.study.reproduce.verdicts import CLAIMS, Case, cases, encoders, fine_tunings, overall

__all__ = ["beside", "curve_sentences", "shapes_sentences", "strength_sentence", "unmoved"]

Found = Mapping[str, Any]
RANDOM_SETS = {  # claim -> the explanation, the difference and the statistic that set D against random features
    "C4": ("start", "spurious_discriminative - spurious_random", "mean", "Spurious IoU of D"),
    "C9": ("start", "core_discriminative - core_random", "mean", "Core IoU of D"),
    "C10": ("from-plain", "core_discriminative - core_random", "change", "Change in core IoU of D against plain"),
}
RIVALS = {score.name: score.title for score in SCORES if score.kind == "rival"}


def beside(claim: str, verdict: str, found: Sequence[Case], results: Sequence[Found]) -> Iterator[str]:
    """Yield what a reader needs to weigh a verdict.

    Parameters
    ----------
    claim : str
        A key of `CLAIMS`.
    verdict : str
        On it as a whole.
    found : sequence of Case
        Its cases.
    results : sequence of mapping
        Of one scale.
    """
    yield from _controls(claim, results)
    yield from _by_method(verdict, found)
    if claim == "C5":
        yield from _against_rivals(results)
        yield from _at_the_papers_epsilon(results)
    if claim == "C6":
        yield from _where_the_interval_lies(found)
    if claim == "C7":
        yield from _pull(results)
    if claim == "C8":
        yield from _without_d(results)
    if claim in RANDOM_SETS:
        yield from _against_random_sets(claim, results)


def _controls(claim: str, results: Sequence[Found]) -> Iterator[str]:
    shown = [
        f"on {case.encoder} it {case.verdict}"
        + (f", {main_number(CLAIMS[claim], case)}" if case.value is not None else "")
        for case in cases(claim, results, controls=True)
    ]
    if shown:
        yield f"Controls, by the same rule: {'; '.join(shown)}."


def _by_method(verdict: str, found: Sequence[Case]) -> Iterator[str]:
    """Say how many methods are behind a count, where the cases of one count several times."""
    best: dict[str, Case] = {}
    tested = [case for case in found if case.verdict != UNTESTED]
    for case in tested:
        so_far = best.setdefault(case.method, case)
        best[case.method] = max(so_far, case, key=lambda case: RANK[case.verdict])
    good = sum(case.verdict != FAILS for case in best.values())
    mixed = 0 < sum(case.verdict != FAILS for case in tested) < len(tested)
    if mixed and len(best) < len(tested):
        has = "has" if good == 1 else "have"
        counted = overall(list(best.values()))
        other = f"; counted so, the verdict would be *{counted}*" if counted != verdict else ""
        yield f"{good} of the {len(best)} methods {has} a case in which it holds at least weakly{other}."


def _against_rivals(results: Sequence[Found]) -> Iterator[str]:
    measured = [
        encoder.found
        for encoder in encoders(results)
        if dig(encoder.found, "scores", "q_score", "auroc", "value") is not None
    ]
    if not measured:
        return
    highest: Counter[str] = Counter()
    for found in measured:
        aurocs = {name: dig(found, "scores", name, "auroc", "value") for name in ("q_score", *RIVALS)}
        known = {name: value for name, value in aurocs.items() if value is not None}
        highest[max(known, key=known.__getitem__)] += 1
    best = ", ".join(f"{RIVALS.get(name, 'Q')} in {n}" for name, n in highest.most_common())
    below = {
        title: sum((dig(found, "q_minus", name, "auroc", "high") or 0) < 0 for found in measured)
        for name, title in {"q_without_d": "Q without D", "l2_norm": "the feature norm"}.items()
    }
    counts = " and ".join(f"below {title} in {n}" for title, n in below.items())
    yield (
        f"Of Q and its label-free rivals, the one with the highest AUROC is {best} (of {len(measured)}). "
        f"The whole interval of the difference puts Q {counts}."
    )


def _at_the_papers_epsilon(results: Sequence[Found]) -> Iterator[str]:
    tests = [
        test
        for result in results
        if result["stage"] == "sensitivity"
        for source in result["found"]["sources"]
        if (test := dig(source, "settings", PAPERS, "test")) is not None and test["value"] is not None
    ]
    if tests:
        above = sum((test["low"] or 0) > 0.5 for test in tests)
        mean = float(np.mean([test["value"] for test in tests]))
        yield (
            f"At the paper's epsilon of 4, AUROC of Q is {mean:.3f} on average, and the decisive condition is met in "
            f"{above} of {len(tests)} encoders."
        )


def _where_the_interval_lies(found: Sequence[Case]) -> Iterator[str]:
    known = [(case.low, case.high) for case in found if case.low is not None and case.high is not None]
    if len(known) > 1:
        below, above = sum(high < MARGIN for _, high in known), sum(low > MARGIN for low, _ in known)
        bound = f"{100 * MARGIN:g} point"
        yield f"The whole interval lies below {bound} in {below} of {len(known)}, and above it in {above}."


def _pull(results: Sequence[Found]) -> Iterator[str]:
    """Say where the comparison can tell little: the regulariser drowns the loss, or accuracy has not moved at all."""
    tuned = [fine_tuning.found for fine_tuning in fine_tunings(results, results) if "differences" in fine_tuning.found]
    ratios = [ratio for found in tuned if (ratio := _norm_ratio(found)) is not None]
    over, still = sum(ratio > 1 for ratio in ratios), sum(map(unmoved, tuned))
    if over:
        yield f"In {over} of {len(ratios)} the norm term's gradient is larger than that of the self-supervised loss."
    if still:
        yield (
            f"In {still} of {len(tuned)} the accuracy of neither arm can be told from that at learning rate 0: "
            "fine-tuning was too short or too slow to show much."
        )
    if over or still:
        mild = [found for found in tuned if (ratio := _norm_ratio(found)) is not None and ratio <= 1]
        neither = sum(not unmoved(found) for found in mild)
        yield f"That leaves {neither} of {len(tuned)} with neither fault."


def _norm_ratio(fine_tuning: Found) -> float | None:
    """Return the norm term's gradient over that of the self-supervised loss."""
    ratio: float | None = dig(fine_tuning, "arms", "qscore", "gradient_ratios", "gradient_ratio_2", "mean")
    return ratio


def unmoved(fine_tuning: Found) -> bool:
    """Return whether neither plain nor Q-Score fine-tuning differs in accuracy from learning rate 0."""
    moved = [dig(fine_tuning, "differences", arm, "lr0", "accuracy") for arm in ("plain", "qscore")]
    return all(found and None not in _ends(found) and found["low"] <= 0 <= found["high"] for found in moved)


def _ends(found: Found) -> tuple[float | None, float | None]:
    return found["low"], found["high"]


def _without_d(results: Sequence[Found]) -> Iterator[str]:
    """Set the sparsity that arms without D reach beside Q-Score's, which C8's rule does not ask for."""
    said = []
    for fine_tuning in fine_tunings(results, results):
        arms = fine_tuning.found.get("arms") or {}
        hoyer = {arm["title"]: dig(arm, "metrics", "hoyer", "value") for arm in arms.values()}
        known = [f"{value:.3f} ({title})" for title, value in hoyer.items() if value is not None]
        if dig(arms, "random-d", "metrics", "hoyer", "value") is not None:
            said.append(f"on {fine_tuning.name}: {', '.join(known)}")
    if said:
        yield f"The rule has no control for D. Hoyer sparsity of all arms {'; '.join(said)}."


def _against_random_sets(claim: str, results: Sequence[Found]) -> Iterator[str]:
    """Set D beside random sets of active features, as large, which C4's, C9's and C10's rules do not ask for."""
    where, quantity, statistic, what = RANDOM_SETS[claim]
    said = []
    for result in results:
        records = dig(result, "found", "explained", where, "records") or ()
        found = [row for row in records if (row["quantity"], row["statistic"]) == (quantity, statistic)]
        if result["stage"] == "shapes" and found and found[0]["value"] is not None:
            said.append(f"{interval(found[0], '+z.4f')} on {label(result)}")
    if said:
        yield f"{what}, less that of random sets of active features: {'; '.join(said)}."


def curve_sentences(results: Sequence[Found]) -> Iterator[str]:
    """Say what AUROC of Q does as the probe rises, and whether D helps it.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``curve`` at one scale.
    """
    known = [(result, points) for result in results if (points := _points(result))]
    methods = [(result, points) for result, points in known if result["method"] not in CONTROLS]
    controls = [(result, points) for result, points in known if result["method"] in CONTROLS]
    for result, points in methods:
        if len(points) > 1:
            yield f"{label(result)}: AUROC of Q goes from {_point(points[0])} to {_point(points[-1])}."
    if controls:
        ends = (f"{label(result).replace(' (control)', '')} {_point(points[-1])}" for result, points in controls)
        yield f"Controls: {'; '.join(ends)}."
    counts = []
    for kind, some in {"training": methods, "control": controls}.items():
        ends_of = [_ends(found) for _, points in some for point in points if (found := _against_no_d(point))]
        if ends_of:
            above = sum(low is not None and low > 0 for low, _ in ends_of)
            below = sum(high is not None and high < 0 for _, high in ends_of)
            where = f"{_count(len(ends_of), 'checkpoint')} of {_count(len(some), kind)}"
            counts.append(f"at {where}, above in {above} and below in {below}")
    if counts:
        yield (
            "Does D help? By the whole interval of the difference, Q is, against Q without D: "
            + "; ".join(counts)
            + "."
        )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _points(result: Found) -> list[Found]:
    points = result["found"].get("checkpoints") or ()
    return [p for p in points if None not in (p.get("accuracy"), dig(p, "scores", "q_score", "auroc", "value"))]


def _point(point: Found) -> str:
    q, without = (number(dig(point, "scores", name, "auroc", "value")) for name in ("q_score", "q_without_d"))
    return f"{q} (probe {number(point['accuracy'], '.1f', 100)} %; Q without D {without})"


def _against_no_d(point: Found) -> Found | None:
    found: Found | None = dig(point, "q_minus", "q_without_d", "auroc")
    return found


def shapes_sentences(results: Sequence[Found]) -> Iterator[str]:
    """Say how many features have to do with the shape, and where none has, what follows.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``shapes`` at one scale.
    """
    counts, without = [], []
    for result in results:
        points = dig(result, "found", "explained", "free", "points") or {"carries_class": (), "looks": ()}
        pairs = zip(points["carries_class"], points["looks"], strict=True)
        known = [(carries, looks) for carries, looks in pairs if carries is not None and looks is not None]
        if not known:
            continue
        carry, look = sum(carries > 0 for carries, _ in known), sum(looks > 0 for _, looks in known)
        counts.append(f"{label(result)} {carry} and {look} of {len(known)}")
        if not carry and not look:
            without.append(label(result))
    if counts:
        yield f"Features to the right of 0, and above 0: {'; '.join(counts)}."
    if without:
        yield (
            f"No feature of {' or '.join(without)} tells more of the shape than of the texture, or looks more at the "
            "shape than beside it: C9 and C10, which ask about the shape, are hardly tested there."
        )


def strength_sentence(results: Sequence[Found]) -> str:
    """Say how unlike the regulariser's pull is from method to method; nothing where it is not known.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``methods`` at one scale.
    """
    known = {label(result): _norm_ratio(result["found"].get("tuned") or {}) for result in results}
    ratios = {name: ratio for name, ratio in known.items() if ratio is not None}
    if not ratios:
        return ""
    lowest = min(ratios, key=ratios.__getitem__)
    highest = max(ratios, key=ratios.__getitem__)
    over = [name for name, ratio in ratios.items() if ratio > 1]
    drowned = f" It is larger than the loss's own with {', '.join(over)}." if over else ""
    return (
        "The regulariser pulls very differently from method to method: the norm term's gradient is "
        f"{ratios[lowest]:.3g} ({lowest}) to {ratios[highest]:.3g} ({highest}) of the self-supervised loss's.{drowned}"
    )
