"""What stands beside the verdicts of the results page: controls, rivals, the paper's setting."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qscore.evaluate.judgement import FAILS, UNTESTED
from qscore.evaluate.scores import SCORES
from qscore.study.reproduce.results import titled
from qscore.study.reproduce.rules import dig
from qscore.study.reproduce.scales import CONTROLS
from qscore.study.reproduce.sensitivity import PAPERS
from qscore.study.reproduce.tables import label, main_number, number
from qscore.study.reproduce.verdicts import CLAIMS, Case, cases, encoders, fine_tunings

__all__ = ["beside", "curve_sentences", "norm_ratio", "shapes_sentence", "stood_still", "strength_sentence"]

Found = Mapping[str, Any]
RIVALS = {score.name: score.title for score in SCORES if score.kind == "rival"}
RETAINED = -0.01  # the change in accuracy that C6 allows


def beside(claim: str, found: Sequence[Case], results: Sequence[Found]) -> Iterator[str]:
    """Yield what a reader needs to weigh a verdict.

    Parameters
    ----------
    claim : str
        A key of `CLAIMS`.
    found : sequence of Case
        Its cases.
    results : sequence of mapping
        Of one scale.
    """
    yield from _controls(claim, results)
    yield from _by_method(found)
    if claim == "C5":
        yield from _against_rivals(results)
        yield from _at_the_papers_epsilon(results)
    if claim == "C6":
        yield from _surely_worse(found)
    if claim == "C7":
        yield from _pull(results)


def _controls(claim: str, results: Sequence[Found]) -> Iterator[str]:
    shown = [
        f"{case.encoder} {case.verdict}" + (f", {main_number(CLAIMS[claim], case)}" if case.value is not None else "")
        for case in cases(claim, results, controls=True)
    ]
    if shown:
        yield f"Controls, by the same rule: {'; '.join(shown)}."


def _by_method(found: Sequence[Case]) -> Iterator[str]:
    """Say how many methods are behind a count, where the cases of one count several times."""
    tested = [case for case in found if case.verdict != UNTESTED]
    methods = {case.method for case in tested}
    good = {case.method for case in tested if case.verdict != FAILS}
    mixed = 0 < sum(case.verdict != FAILS for case in tested) < len(tested)
    if mixed and len(methods) < len(tested):
        has = "has" if len(good) == 1 else "have"
        yield f"{len(good)} of the {len(methods)} methods {has} a case in which it holds at least weakly."


def _against_rivals(results: Sequence[Found]) -> Iterator[str]:
    of = [encoder.found for encoder in encoders(results) if dig(encoder.found, "scores", "q_score", "auroc", "value")]
    highest: Counter[str] = Counter()
    for found in of:
        aurocs = {name: dig(found, "scores", name, "auroc", "value") for name in ("q_score", *RIVALS)}
        known = {name: value for name, value in aurocs.items() if value is not None}
        highest[max(known, key=known.__getitem__)] += 1
    if not of:
        return
    best = ", ".join(f"{RIVALS.get(name, 'Q')} in {n}" for name, n in highest.most_common())
    below = {
        title: sum((dig(found, "q_minus", name, "auroc", "high") or 0) < 0 for found in of)
        for name, title in {"q_without_d": "Q without D", "l2_norm": "the feature norm"}.items()
    }
    counts = " and ".join(f"below {title} in {n}" for title, n in below.items())
    yield f"Of Q and its label-free rivals, the highest AUROC has: {best} (of {len(of)}). Q is {counts}."


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
            f"At the paper's epsilon of 4, AUROC of Q is above 0.5 in {above} of {len(tests)} encoders, {mean:.3f} on "
            "average."
        )


def _surely_worse(found: Sequence[Case]) -> Iterator[str]:
    known = [(case.low, case.high) for case in found if case.low is not None and case.high is not None]
    if len(known) > 1:
        below, above = sum(high < RETAINED for _, high in known), sum(low > RETAINED for low, _ in known)
        yield f"The whole interval lies below -1 point in {below} of {len(known)}, and above it in {above}."


def _pull(results: Sequence[Found]) -> Iterator[str]:
    """Say where the comparison can tell little: the regulariser drowns the loss, or nothing has moved at all."""
    of = [fine_tuning.found for fine_tuning in fine_tunings(results, results) if "differences" in fine_tuning.found]
    over = sum((norm_ratio(found) or 0) > 1 for found in of)
    still = sum(stood_still(found) for found in of)
    if over:
        yield f"In {over} of {len(of)} the norm term's gradient is larger than that of the self-supervised loss."
    if still:
        yield f"In {still} of {len(of)} neither arm can be told from learning rate 0: nothing follows from these."


def norm_ratio(fine_tuning: Found) -> float | None:
    """Return the norm term's gradient over that of the self-supervised loss."""
    ratio: float | None = dig(fine_tuning, "arms", "qscore", "gradient_ratios", "gradient_ratio_2", "mean")
    return ratio


def stood_still(fine_tuning: Found) -> bool:
    """Return whether neither plain nor Q-Score fine-tuning can be told from learning rate 0."""
    moved = [dig(fine_tuning, "differences", arm, "lr0", "accuracy") for arm in ("plain", "qscore")]
    return all(of and None not in (of["low"], of["high"]) and of["low"] <= 0 <= of["high"] for of in moved)


def curve_sentences(results: Sequence[Found]) -> Iterator[str]:
    """Answer the curves' question in numbers: what AUROC of Q does as the probe rises, and whether D does it.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``curve`` at one scale.
    """
    known = [(result, _points(result)) for result in results]
    for result, points in known:
        if len(points) > 1:
            first, last = (_point(points[k]) for k in (0, -1))
            yield f"{label(result)}: AUROC of Q goes from {first} to {last}."
    ends = [f"{titled(result)} {_point(points[-1])}" for result, points in known if points and _control(result)]
    if ends:
        yield f"Controls: {'; '.join(ends)}."
    differences = [
        of
        for result, points in known
        if not _control(result)
        for point in points
        if (of := dig(point, "q_minus", "q_without_d", "auroc")) is not None and None not in (of["low"], of["high"])
    ]
    if differences:
        above, below = sum(of["low"] > 0 for of in differences), sum(of["high"] < 0 for of in differences)
        yield (
            f"Is it D? Of {len(differences)} checkpoints of the methods, Q is above Q without D in {above} and below "
            f"it in {below}; in the others the interval of the difference contains 0."
        )


def _points(result: Found) -> list[Found]:
    points = result["found"].get("checkpoints") or ()
    return [p for p in points if None not in (p.get("accuracy"), dig(p, "scores", "q_score", "auroc", "value"))]


def _point(point: Found) -> str:
    q, without = (number(dig(point, "scores", name, "auroc", "value")) for name in ("q_score", "q_without_d"))
    return f"{q} (probe {number(point['accuracy'], '.1f', 100)} %; Q without D {without})"


def _control(result: Found) -> bool:
    return result["method"] in CONTROLS


def shapes_sentence(results: Sequence[Found]) -> str:
    """Say how many features have anything to do with the shape; nothing where none were looked at.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``shapes`` at one scale.
    """
    said, carrying = [], 0
    for result in results:
        points = dig(result, "found", "explained", "free", "points") or {}
        pairs = [
            pair
            for pair in zip(points.get("carries_class") or (), points.get("looks") or (), strict=True)
            if None not in pair
        ]
        if pairs:
            carry, look = (sum(pair[k] > 0 for pair in pairs) for k in (0, 1))
            carrying += carry
            said.append(f"{label(result)} {carry} and {look} of {len(pairs)} features")
    if not said:
        return ""
    nothing = (
        " Where no feature carries the shape, C3, C4, C9 and C10 look for what is not there: that speaks of what these "
        "encoders learned, not of the claims."
    )
    return f"To the right of 0, and above 0: {'; '.join(said)}." + ("" if carrying else nothing)


def strength_sentence(results: Sequence[Found]) -> str:
    """Say how unlike the regulariser's pull is from method to method; nothing where it is not known.

    Parameters
    ----------
    results : sequence of mapping
        Of stage ``methods`` at one scale.
    """
    ratios = {
        label(result): ratio
        for result in results
        if (ratio := norm_ratio(result["found"].get("tuned") or {})) is not None
    }
    if not ratios:
        return ""
    lowest, highest = (of(ratios, key=ratios.__getitem__) for of in (min, max))
    over = [name for name, ratio in ratios.items() if ratio > 1]
    drowned = f" It is larger than the loss's own with {', '.join(over)}." if over else ""
    return (
        "The same lambdas pull unlike: the norm term's gradient is "
        f"{ratios[lowest]:.3g} ({lowest}) to {ratios[highest]:.3g} ({highest}) of the self-supervised loss's.{drowned}"
    )
