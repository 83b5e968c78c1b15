"""The ten claims, judged by rules that were fixed before anything was measured.

Each claim is judged on every encoder that a finished training ended in, the controls left out (a *case*), and then as a
whole: of the cases that can be tested, it *holds* if it holds in three quarters, *holds weakly* if it holds at least
weakly in half, and otherwise *does not hold here*. "Above" and "below" mean that the whole 95 % interval lies there. A
case without numbers (a training that collapsed, a fine-tuning refused or diverged) *cannot be tested*, with the reason.

- **C1, C2**: :func:`qscore.evaluate.judgement.judge`, on test rows.
- **C3, C4, C9, C10**: :func:`qscore.explain.judgement.judge`, on drawn shapes; C3 where backgrounds are drawn evenly,
  for of two attributes that go together nothing could tell. C10 is asked twice, of the start and of plain fine-tuning
  against fine-tuning with the regulariser, and the worse answer counts: fine-tuning alone might do as much.
- **C5**: decisive, AUROC of Q above 0.5. Beyond: it reaches 0.5735 (a Cliff's delta of 0.147, the least that is not
  called negligible), is above those of Q without D, of Q with random D and of the feature norm, and Q adds to the norm.
  *Cannot be tested* where the probe is at chance.
- **C6**: at keep = 0.6. Decisive: the change in accuracy above -1 point. Beyond: accuracy above the 95th percentile of
  random subsets.
- **C7**: decisive, accuracy above that of plain fine-tuning. Beyond: above learning rate 0 and, where it was run, above
  a random D, and higher than plain with every seed.
- **C8**: decisive, Hoyer sparsity above that of plain fine-tuning, by 0.001 at least: paired differences of rows are so
  even that any number of zeros behind the point would do. Beyond: by 0.01, and the share of exact zeros is above too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qscore.evaluate.judgement import FAILS, HOLDS, UNTESTED, WEAKLY
from qscore.study.reproduce.results import titled
from qscore.study.reproduce.rules import LEAST_AUROC, RULES, Case, Encoder, because, dig, judge_shapes, untested
from qscore.study.reproduce.scales import CONTROLS

__all__ = [
    "CLAIMS",
    "LEAST_AUROC",
    "MISSING",
    "ON_SHAPES",
    "Case",
    "Claim",
    "cases",
    "encoders",
    "fine_tunings",
    "judge",
    "overall",
]

MISSING = "not yet run"
HOLDS_SHARE, WEAKLY_SHARE = 3 / 4, 1 / 2
ON_SHAPES = ("C3", "C4", "C9", "C10")
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """What the paper claims, and what is counted here."""

    title: str
    number: str
    """What the main number is."""
    paper: str = ""
    """The number in the paper, or nothing."""
    unit: str = ""
    """``" points"`` of a number that is shown times 100."""
    sign: str = "+"
    digits: int = 3


CLAIMS = {
    "C1": Claim("correct samples have few, highly deviated features", "Cliff's delta of Z, correct against wrong"),
    "C2": Claim(
        "discriminative features sit mostly in correct samples",
        "correct share of the rows with features of D, over the base rate",
        unit=" points",
    ),
    "C3": Claim(
        "discriminative features correspond to unique physical attributes",
        "mutual-information gap of D over that of random features",
        digits=4,
    ),
    "C4": Claim(
        "noisy features correspond to spurious attributes",
        "spurious IoU of D minus that of other features (claimed: below 0)",
        digits=4,
    ),
    "C5": Claim(
        "Q predicts misclassification",
        "AUROC of Q",
        "AUPRC 91.45 % (ImageNet-100), 78.78 % (ImageNet-1K); version 1: up to 90 %",
        sign="",
    ),
    "C6": Claim(
        "40 % of the features can go",
        "change in closed-form ridge's accuracy with 60 % of the features",
        "up to 40 %",
        unit=" points",
    ),
    "C7": Claim(
        "regularisation lifts the linear probe",
        "change in accuracy against plain fine-tuning",
        "up to +5.8 % (ImageNet-100), +3.7 % (ImageNet-1K); version 1: 3.26 % relative",
        unit=" points",
    ),
    "C8": Claim("regularisation raises sparsity", "change in Hoyer sparsity against plain fine-tuning", digits=4),
    "C9": Claim("discriminative features correlate with core attributes", "Spearman's correlation of Q and core IoU"),
    "C10": Claim(
        "regularisation makes representations more interpretable",
        "change in core IoU of D, against the start or plain fine-tuning, whichever is judged worse",
        digits=4,
    ),
}


def judge(results: Sequence[Found]) -> dict[str, tuple[str, list[Case]]]:
    """Return each claim's verdict, and the cases behind it.

    Parameters
    ----------
    results : sequence of mapping
        Of one scale, as `read_results` returns them.
    """
    return {name: (overall(found), found) for name in CLAIMS for found in [cases(name, results)]}


def overall(found: Sequence[Case]) -> str:
    """Return the verdict of a claim from those of its cases.

    Examples
    --------
    >>> overall([Case("a", "holds"), Case("b", "holds weakly"), Case("c", "does not hold here")])
    'holds weakly'
    """
    if not found:
        return MISSING
    tested = [case.verdict for case in found if case.verdict != UNTESTED]
    if not tested:
        return UNTESTED
    if sum(verdict == HOLDS for verdict in tested) >= HOLDS_SHARE * len(tested):
        return HOLDS
    return WEAKLY if sum(verdict != FAILS for verdict in tested) >= WEAKLY_SHARE * len(tested) else FAILS


def cases(claim: str, results: Sequence[Found], *, controls: bool = False) -> list[Case]:
    """Return a claim's cases: of encoders (C1, C2, C5, C6), of fine-tunings (C7, C8), or of shapes (all others).

    Parameters
    ----------
    claim : str
        A key of `CLAIMS`.
    results : sequence of mapping
        Of one scale.
    controls : bool, default=False
        Return what the rule says of the controls instead, which are never cases, nor fine-tuned.
    """
    some = [result for result in results if (result["method"] in CONTROLS) == controls]
    if claim in ON_SHAPES:
        return [case for result in some if (case := _on_shapes(claim, result)) is not None]
    if claim in ("C7", "C8"):
        return [replace(_judged(claim, of), seeds=_n_seeds(of.found)) for of in fine_tunings(some, results)]
    return [_judged(claim, of) for of in _encoders(some)]


def _judged(claim: str, of: Encoder) -> Case:
    return untested(of, of.failed) if of.failed else RULES[claim](of)


def encoders(results: Sequence[Found]) -> Iterator[Encoder]:
    """Yield each encoder that a training ended in, or should have, the controls left out.

    Parameters
    ----------
    results : sequence of mapping
        Of one scale.
    """
    return _encoders(result for result in results if result["method"] not in CONTROLS)


def _encoders(results: Iterable[Found]) -> Iterator[Encoder]:
    for result in results:
        found = result["found"]
        if result["stage"] == "curve" and result["complete"]:
            last = (found.get("checkpoints") or [found])[-1]
            yield _encoder(result, last)
        elif result["stage"] == "methods" and ("scores" in found or "failed" in found):
            yield _encoder(result, found)


def _encoder(result: Found, found: Found, *, name: str = "", risen: Found | None = None) -> Encoder:
    reason = found.get("failed")
    rising = dig(found if risen is None else risen, "rise", "rising")
    failed = because(reason) if reason else None
    return Encoder(_name(result) + name, result["stage"], result["method"], found, bool(rising), failed)


def fine_tunings(some: Sequence[Found], results: Sequence[Found]) -> Iterator[Encoder]:
    """Yield the fine-tunings in some of the results.

    Parameters
    ----------
    some : sequence of mapping
        Whose fine-tunings to yield.
    results : sequence of mapping
        All of that scale, which know whether the curve that one started from still rose.
    """
    for result in some:
        found = result["found"]
        if result["stage"] == "repair":
            rates = found.get("rates") or ({"": found} if "failed" in found else {})
            for rate in rates.values():
                yield _encoder(result, rate, name=_at(rate), risen=_end_of_curve(result, results))
        elif result["stage"] == "methods":
            tuned = found.get("tuned") or {}
            if "failed" in found:
                yield _encoder(result, found)
            elif "differences" in tuned or "refused" in tuned:
                yield _encoder(result, tuned, name=_at(tuned), risen=found)


def _end_of_curve(result: Found, results: Sequence[Found]) -> Found:
    """Return the last checkpoint of the curve that a repair started from: same method and seed, narrowest width."""
    curves = [
        (int("0" + re.sub(r"^.*?(\d*)$", r"\1", one["name"])), one["found"]["checkpoints"][-1])
        for one in results
        if one["stage"] == "curve" and one["complete"] and one["found"].get("checkpoints")
        if all(one.get(name) == result.get(name) for name in ("method", "seed", "subset"))
    ]
    return min(curves, key=lambda curve: curve[0])[1] if curves else {}


def _on_shapes(claim: str, result: Found) -> Case | None:
    control = result["method"] in CONTROLS
    if result["stage"] != "shapes" or (control and claim == "C10"):  # controls are not fine-tuned
        return None
    of = _encoder(result, result["found"])
    return untested(of, of.failed) if of.failed else judge_shapes(claim, of, result["complete"])


def _at(fine_tuning: Found) -> str:
    rate = fine_tuning.get("learning_rate")
    return "" if rate is None else f" at {rate:g}"


def _n_seeds(fine_tuning: Found) -> int | None:
    """Return the number of seeds that both Q-Score regularisation and plain fine-tuning finished with."""
    paired = dig(fine_tuning, "differences", "qscore", "plain", "accuracy", "seeds")
    return len(paired) if paired else None


def _name(result: Found) -> str:
    unfinished = "" if result["complete"] else ", unfinished"
    return f"{titled(result)} ({result['stage']}{unfinished})"
