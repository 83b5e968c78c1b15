import math

import pytest

from qscore.explain.claims import Measure
from qscore.explain.judgement import Numbers, judge, verdict_sentences

UP, DOWN, UNCLEAR = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)
LIFT = "core_lift_discriminative - spurious_lift_discriminative"
RHO, SPURIOUS = "q_score ~ core_discriminative", "spurious_discriminative - spurious_outside"
# What all claims in full need: value, low, high of each number that a rule looks at.
IDEAL = {
    ("gap_discriminative", "mean"): UP,
    ("gap_discriminative - gap_random", "mean"): UP,
    ("gap_discriminative - gap_frequent", "mean"): UP,
    ("gap_random", "p95"): (0.2, math.nan, math.nan),
    (SPURIOUS, "mean"): DOWN,
    ("core_discriminative - core_outside", "mean"): UP,
    ("spurious_outside - spurious_random_map", "mean"): UP,
    (RHO, "spearman"): UP,
    ("core_discriminative - core_random_map", "mean"): UP,
    ("core_discriminative - core_gaussian", "mean"): UP,
    (LIFT, "mean"): UP,
    ("core_discriminative", "correct - wrong"): UP,
    ("core_discriminative", "change"): UP,
    ("spurious_discriminative", "change"): DOWN,
    (LIFT, "change"): UP,
    (RHO, "change of spearman"): UP,
}
HOLDS, WEAKLY, FAILS, UNTESTED = "holds", "holds weakly", "does not hold here", "cannot be tested"


def judged(changes=None, kinds=("core", "spurious"), effects=None, **options):
    numbers = IDEAL | (changes or {})
    effects = effects or {}
    measures = [
        Measure(*key, *value, 100, 0, effects.get(key, math.copysign(0.5, value[0]))) for key, value in numbers.items()
    ]
    settings = {"held_out": True, "association": ("shape", "colour", 0.01), "compared": True} | options
    return judge(Numbers(measures), kinds, **settings)


def verdicts(*arguments, **options):
    return {claim: found.verdict for claim, found in judged(*arguments, **options).items()}


def test_all_hold_where_every_condition_is_met():
    assert verdicts() == {"C3": HOLDS, "C4": HOLDS, "C9": HOLDS, "C10": HOLDS}
    assert all(all(found.conditions.values()) and not found.reason for found in judged().values())


@pytest.mark.parametrize(
    ("claim", "key", "value", "expected"),
    [
        ("C3", ("gap_discriminative", "mean"), UNCLEAR, FAILS),
        ("C3", ("gap_discriminative - gap_random", "mean"), UNCLEAR, FAILS),
        ("C3", ("gap_random", "p95"), (0.3, math.nan, math.nan), FAILS),
        ("C3", ("gap_discriminative - gap_frequent", "mean"), UNCLEAR, WEAKLY),
        ("C4", (SPURIOUS, "mean"), UNCLEAR, FAILS),
        ("C4", (SPURIOUS, "mean"), UP, FAILS),
        ("C4", ("core_discriminative - core_outside", "mean"), DOWN, FAILS),
        ("C4", ("core_discriminative - core_outside", "mean"), UNCLEAR, WEAKLY),
        ("C4", ("spurious_outside - spurious_random_map", "mean"), UNCLEAR, WEAKLY),
        ("C9", (RHO, "spearman"), UNCLEAR, FAILS),
        ("C9", (RHO, "spearman"), (0.09, 0.05, 0.2), WEAKLY),
        ("C9", (RHO, "spearman"), (0.1, 0.05, 0.2), HOLDS),
        ("C9", ("core_discriminative - core_random_map", "mean"), UNCLEAR, FAILS),
        ("C9", ("core_discriminative - core_gaussian", "mean"), DOWN, WEAKLY),
        ("C9", (LIFT, "mean"), UNCLEAR, WEAKLY),
        ("C9", ("core_discriminative", "correct - wrong"), (math.nan,) * 3, WEAKLY),
        ("C10", ("core_discriminative", "change"), UNCLEAR, FAILS),
        ("C10", ("spurious_discriminative", "change"), UP, FAILS),
        ("C10", ("spurious_discriminative", "change"), UNCLEAR, HOLDS),
        ("C10", (LIFT, "change"), UNCLEAR, WEAKLY),
        ("C10", (RHO, "change of spearman"), UNCLEAR, WEAKLY),
    ],
)
def test_each_condition(claim, key, value, expected):
    found = verdicts({key: value})
    assert found.pop(claim) == expected
    assert set(found.values()) == {HOLDS}


@pytest.mark.parametrize(
    ("claim", "key", "sign"), [("C4", (SPURIOUS, "mean"), -1), ("C10", ("core_discriminative", "change"), 1)]
)
def test_small_effects_hold_weakly(claim, key, sign):
    assert verdicts(effects={key: sign * 0.2})[claim] == HOLDS
    assert verdicts(effects={key: sign * 0.19})[claim] == WEAKLY
    assert verdicts(effects={key: math.nan})[claim] == WEAKLY


def test_d_found_on_the_same_images_holds_weakly():
    found = judged(held_out=False)["C3"]
    assert (found.verdict, found.reason) == (WEAKLY, "a D that was found on other images")


@pytest.mark.parametrize(
    ("association", "reason"),
    [
        (None, "only drawn shapes have attributes that are known"),
        (
            ("shape", "background", 0.874),
            "shape and background go together in these images (adjusted mutual information 0.87), so no feature can "
            "tell one from the other; draw shapes with spurious=0",
        ),
    ],
)
def test_attributes_that_cannot_be_told_apart(association, reason):
    found = judged(association=association)["C3"]
    assert (found.verdict, found.conditions, found.reason) == (UNTESTED, {}, reason)


def test_an_object_and_its_background_get_no_verdict():
    found = judged(kinds=("object", "background"))
    assert {claim: of.verdict for claim, of in found.items()} == {
        "C3": HOLDS, "C4": UNTESTED, "C9": UNTESTED, "C10": UNTESTED,
    }  # fmt: skip
    reason = "the masks mark object and background, of which no verdict on core and spurious regions follows"
    assert {of.reason for claim, of in found.items() if claim != "C3"} == {reason}


def test_without_masks():
    found = judged(kinds=None, compared=False)
    assert list(found) == ["C3", "C4", "C9"] and found["C9"].reason == "no masks were given"


NOT_BOTH = "too few samples have active features both in D and outside it, with masks of both kinds"
NOT_BEFORE = "too few samples have an active feature in D both before and after, with masks of both kinds"


@pytest.mark.parametrize(
    ("claim", "key", "reason"),
    [
        ("C3", ("gap_discriminative", "mean"), "too few features of D are highly active in enough of these images"),
        ("C4", (SPURIOUS, "mean"), NOT_BOTH),
        ("C4", ("core_discriminative - core_outside", "mean"), NOT_BOTH),
        ("C9", (RHO, "spearman"), "too few samples have an active feature in D, or all have the same Q or core IoU"),
        ("C10", ("core_discriminative", "change"), NOT_BEFORE),
        ("C10", ("spurious_discriminative", "change"), NOT_BEFORE),
    ],
)
def test_numbers_that_are_not_there(claim, key, reason):
    found = judged({key: (math.nan,) * 3})[claim]
    assert (found.verdict, found.reason) == (UNTESTED, reason)


def test_sentences():
    found = judged({("spurious_discriminative", "change"): UP}, association=None, effects={(SPURIOUS, "mean"): -0.1})
    assert verdict_sentences(found.values()) == [
        "C3 (discriminative features correspond to unique physical attributes) cannot be tested: only drawn shapes "
        "have attributes that are known.",
        "C4 (noisy features correspond to spurious attributes) holds weakly; not met: a difference of spurious IoU "
        "that reaches 0.2 standard deviations.",
        "C9 (discriminative features correlate with core attributes) holds.",
        "C10 (regularisation makes representations more interpretable) does not hold here; not met: a spurious IoU "
        "that did not rise.",
    ]
