"""What the numbers say of claims C3, C4, C9 and C10, by rules fixed beforehand."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qscore.explain.claims import Measure

__all__ = ["CLAIMS", "NOTABLE", "TIED", "ClaimVerdict", "Numbers", "judge", "verdict_sentences"]

HOLDS, WEAKLY, FAILS, UNTESTED = "holds", "holds weakly", "does not hold here", "cannot be tested"
N_DECISIVE = 2  # the first conditions of a rule, without which a claim does not hold at all
NOTABLE = 0.2  # standard deviations of paired differences: the least that Cohen calls a small effect
NOTABLE_RHO = 0.1  # the same of a correlation
TIED = 0.1  # adjusted mutual information of two attributes beyond which they cannot be told apart
CORE = ("core", "spurious")
CLAIMS = {
    "C3": "discriminative features correspond to unique physical attributes",
    "C4": "noisy features correspond to spurious attributes",
    "C9": "discriminative features correlate with core attributes",
    "C10": "regularisation makes representations more interpretable",
}


@dataclass(frozen=True)
class ClaimVerdict:
    """What the rule fixed beforehand says of a claim."""

    claim: str
    """``C3``, ``C4``, ``C9`` or ``C10``."""
    verdict: str
    """``holds``, ``holds weakly``, ``does not hold here``, or ``cannot be tested``."""
    conditions: dict[str, bool]
    """Each condition of the rule in words, and whether it was met; empty where the claim cannot be tested."""
    reason: str
    """The conditions that were not met, or why the claim cannot be tested."""


class Numbers:
    """Measures by name; NaN where one was not taken."""

    def __init__(self, measures: Iterable[Measure]) -> None:
        self._found = {(measure.quantity, measure.statistic): measure for measure in measures}

    def get(self, quantity: str, statistic: str = "mean") -> Measure:
        """Return a number, or one that is NaN."""
        nothing = Measure(quantity, statistic, math.nan, math.nan, math.nan, 0, 0, math.nan)
        return self._found.get((quantity, statistic), nothing)


def judge(
    numbers: Numbers,
    kinds: tuple[str, str] | None,
    *,
    held_out: bool,
    association: tuple[str, str, float] | None,
    compared: bool,
) -> dict[str, ClaimVerdict]:
    """Judge all claims by rules fixed before any number was seen.

    "Above" and "below" mean that the whole 95 % interval lies there. A claim *holds* if all conditions are met, *holds
    weakly* if the two decisive ones are, and otherwise *does not hold here*.

    **C3.** Features' mutual-information gaps, less what shuffles give. Decisive: D's mean is above 0; it is above that
    of the random sets, and larger than the 95th percentile over these. Beyond: above the most frequent features; D was
    found on other images. *Cannot be tested* on images without attributes, where two attributes go together (adjusted
    mutual information of 0.1 and more), or where no feature of D is highly active in ten images.

    **C4.** Decisive: active features outside D have a spurious IoU above that of D in the same samples, and their core
    IoU there is not above D's. Beyond: their core IoU is below D's; their spurious IoU is above that of a random map;
    the difference of spurious IoU reaches 0.2 of its standard deviation.

    **C9.** Decisive: Spearman's correlation of Q and core IoU is above 0; D's core IoU is above that of a random map.
    Beyond: the correlation reaches 0.1; D's core IoU is above that of a centred map; D's lift above random maps is
    higher at core than at spurious regions; core IoU is higher in correct than in wrong samples.

    **C10.** The same images before and after. Decisive: core IoU rose; spurious IoU did not. Beyond: the lift at core
    over that at spurious regions rose; the correlation of Q and core IoU rose; the change of core IoU reaches 0.2 of
    its standard deviation.

    C4, C9 and C10 *cannot be tested* without core and spurious masks: of an object and its background no verdict
    follows.

    Parameters
    ----------
    numbers : Numbers
        Of `gap_measures`, `localisation_measures` and `improvement`.
    kinds : tuple of str or None
        What the masks mark; None without masks.
    held_out : bool
        Whether D was found on other images than these.
    association : tuple of two str and a float, or None
        The two attributes that go together the most, and by how much; None where images have none.
    compared : bool
        Whether there is an explanation from before.
    """
    found = {"C3": _judge_attributes(numbers, held_out, association)}
    if kinds is None:
        missing = "no masks were given"
    elif kinds != CORE:
        missing = f"the masks mark {kinds[0]} and {kinds[1]}, of which no verdict on core and spurious regions follows"
    else:
        missing = ""
    rules = {"C4": _judge_noisy, "C9": _judge_core}
    if compared:
        rules["C10"] = _judge_change
    for claim, rule in rules.items():
        found[claim] = untested(claim, missing) if missing else rule(numbers)
    return found


def untested(claim: str, reason: str) -> ClaimVerdict:
    """Return that a claim cannot be tested, and why."""
    return ClaimVerdict(claim, UNTESTED, {}, reason)


def verdict_sentences(verdicts: Iterable[ClaimVerdict]) -> list[str]:
    """Say what the rules say."""
    said = []
    for found in verdicts:
        because = f": {found.reason}" if found.reason and found.verdict == UNTESTED else ""
        unmet = f"; not met: {found.reason}" if found.reason and found.verdict != UNTESTED else ""
        said.append(f"{found.claim} ({CLAIMS[found.claim]}) {found.verdict}{because}{unmet}.")
    return said


def _judge_attributes(numbers: Numbers, held_out: bool, association: tuple[str, str, float] | None) -> ClaimVerdict:
    if association is None:
        return untested("C3", "only drawn shapes have attributes that are known")
    a, b, strength = association
    if strength >= TIED:
        return untested(
            "C3",
            f"{a} and {b} go together in these images (adjusted mutual information {strength:.2f}), so no feature can "
            "tell one from the other; draw shapes with spurious=0",
        )
    gap = numbers.get("gap_discriminative")
    if math.isnan(gap.low):
        return untested("C3", "too few features of D are highly active in enough of these images")
    random, frequent = (numbers.get(f"gap_discriminative - gap_{name}") for name in ("random", "frequent"))
    conditions = {
        "a gap of D above chance": gap.low > 0,
        "a gap of D above that of random sets": random.low > 0 and gap.value > numbers.get("gap_random", "p95").value,
        "a gap of D above that of the most frequent features": frequent.low > 0,
        "a D that was found on other images": held_out,
    }
    return _verdict("C3", conditions)


def _judge_noisy(numbers: Numbers) -> ClaimVerdict:
    # Both are differences of D minus what is outside.
    spurious, core = (numbers.get(f"{kind}_discriminative - {kind}_outside") for kind in ("spurious", "core"))
    if math.isnan(spurious.low + core.low):
        return untested("C4", "too few samples have active features both in D and outside it, with masks of both kinds")
    conditions = {
        "a higher spurious IoU outside D": spurious.high < 0,
        "no higher core IoU outside D": not core.high < 0,
        "a lower core IoU outside D": core.low > 0,
        "a spurious IoU outside D above a random map's": numbers.get("spurious_outside - spurious_random_map").low > 0,
        f"a difference of spurious IoU that reaches {NOTABLE} standard deviations": -spurious.effect >= NOTABLE,
    }
    return _verdict("C4", conditions)


def _judge_core(numbers: Numbers) -> ClaimVerdict:
    rho = numbers.get("q_score ~ core_discriminative", "spearman")
    if math.isnan(rho.low):
        return untested("C9", "too few samples have an active feature in D, or all have the same Q or core IoU")
    conditions = {
        "a correlation of Q and core IoU above 0": rho.low > 0,
        "a core IoU above a random map's": numbers.get("core_discriminative - core_random_map").low > 0,
        f"a correlation that reaches {NOTABLE_RHO}": rho.value >= NOTABLE_RHO,
        "a core IoU above a centred map's": numbers.get("core_discriminative - core_gaussian").low > 0,
        "a lift that is higher at core than at spurious regions": numbers.get(
            "core_lift_discriminative - spurious_lift_discriminative"
        ).low
        > 0,
        "a core IoU that is higher in correct samples": numbers.get("core_discriminative", "correct - wrong").low > 0,
    }
    return _verdict("C9", conditions)


def _judge_change(numbers: Numbers) -> ClaimVerdict:
    core, spurious = (numbers.get(f"{kind}_discriminative", "change") for kind in ("core", "spurious"))
    if math.isnan(core.low + spurious.low):
        reason = "too few samples have an active feature in D both before and after, with masks of both kinds"
        return untested("C10", reason)
    lift = numbers.get("core_lift_discriminative - spurious_lift_discriminative", "change")
    conditions = {
        "a core IoU that rose": core.low > 0,
        "a spurious IoU that did not rise": not spurious.low > 0,
        "a lift at core over spurious regions that rose": lift.low > 0,
        "a correlation of Q and core IoU that rose": numbers.get(
            "q_score ~ core_discriminative", "change of spearman"
        ).low
        > 0,
        f"a change of core IoU that reaches {NOTABLE} standard deviations": core.effect >= NOTABLE,
    }
    return _verdict("C10", conditions)


def _verdict(claim: str, conditions: dict[str, bool]) -> ClaimVerdict:
    """Return "holds" if all conditions are met, "holds weakly" if the decisive ones are."""
    met = list(conditions.values())
    verdict = HOLDS if all(met) else WEAKLY if all(met[:N_DECISIVE]) else FAILS
    asked = list(conditions.items())[: N_DECISIVE if verdict == FAILS else None]
    return ClaimVerdict(claim, verdict, conditions, "; ".join(words for words, was in asked if not was))
