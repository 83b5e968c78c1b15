from pathlib import Path

import pytest
from reference.study_results import RISING, STILL, compared, everything, explained, measured, result

from qscore.evaluate import judgement as evaluate_judgement
from qscore.explain import judgement as explain_judgement
from qscore.study.reproduce.results import read_results
from qscore.study.reproduce.verdicts import CLAIMS, LEAST_AUROC, Case, cases, judge, overall

HOLDS, WEAKLY, FAILS, UNTESTED = "holds", "holds weakly", "does not hold here", "cannot be tested"


REACHES, RANDOM_SETS = "an AUROC that reaches 0.5735", "accuracy above random sets' 95th percentile"
SIXTY = measured()["compression"][0]
REFUSED = {"learning_rate": 2e-4, "refused": "its features are signed."}


def methods(**changes):
    return result("methods", "byol", {"rise": STILL, **measured(**changes)})


def unexplained(*, complete, **more):
    """A result on shapes whose fine-tuned encoders were not explained."""
    places = {"start": explained({}), "free": explained({})}
    return result("shapes", "simclr", {"rise": STILL, "explained": places, **more}, complete=complete)


def diverged(arm):
    """A comparison in which an arm diverged with its only seed."""
    found = compared()
    found["arms"][arm] = found["arms"][arm] | {"metrics": {}, "failed": {"0": "the loss is NaN\nat step 3."}}
    return found | {"differences": {}}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "not yet run"),
        ([UNTESTED], UNTESTED),
        ([HOLDS] * 3 + [FAILS], HOLDS),
        ([HOLDS] * 3 + [FAILS] * 2, WEAKLY),
        ([HOLDS, WEAKLY, FAILS, FAILS], WEAKLY),
        ([HOLDS, FAILS, FAILS], FAILS),
        ([WEAKLY] * 4, WEAKLY),
        ([HOLDS] * 3 + [FAILS] + [UNTESTED] * 9, HOLDS),  # what cannot be tested does not count
    ],
)
def test_three_quarters_hold_and_half_at_least_weakly(verdicts, expected):
    assert overall([Case("an encoder", verdict) for verdict in verdicts]) == expected


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, HOLDS),
        ({"auroc": (LEAST_AUROC - 0.001, 0.55, 0.6)}, WEAKLY),  # negligible
        ({"auroc": (0.6, 0.499, 0.7)}, FAILS),
        ({"above": 0.005}, WEAKLY),  # the intervals of its differences from D's absence and the norm touch 0
        ({"gain": 0.004}, WEAKLY),
        ({"gain_on_norm": None}, WEAKLY),
        ({"undefined": "the probe is at chance"}, UNTESTED),
        ({"scores": {}}, UNTESTED),
    ],
)
def test_c5_asks_for_an_effect_that_d_and_q_make(changes, verdict):
    [case] = cases("C5", [methods(**changes)])
    assert case.verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, HOLDS),
        ({"random_high": 0.6}, WEAKLY),
        ({"random_high": None}, WEAKLY),
        ({"holds": False, "retained": False}, FAILS),
    ],
)
def test_c6_asks_for_60_per_cent(changes, verdict):
    right = measured()["compression"][0] | changes
    [case] = cases("C6", [methods(compression=[right | {"keep": 0.45, "holds": True}, right])])
    assert (case.verdict, case.value, case.low) == (verdict, -0.001, -0.004)
    [untested] = cases("C6", [methods(compression=None)])
    assert untested.verdict == UNTESTED


@pytest.mark.parametrize(
    ("changes", "c7", "c8"),
    [
        ({}, HOLDS, HOLDS),
        ({"accuracy": (0.01, -0.001, 0.02)}, FAILS, HOLDS),
        ({"on_random": 0.004}, WEAKLY, HOLDS),
        ({"on_still": 0.004}, WEAKLY, HOLDS),
        ({"seeds": (0.05, -0.001)}, WEAKLY, HOLDS),
        ({"zeros": 0.004}, HOLDS, WEAKLY),
        ({"hoyer": 0.0095}, HOLDS, WEAKLY),
        ({"hoyer": 0.004}, HOLDS, FAILS),
    ],
)
def test_c7_and_c8_are_asked_of_each_fine_tuning(changes, c7, c8):
    both = {"paper": compared(**changes), "calibrated": compared(**changes) | {"learning_rate": 2e-4}}
    found = [result("repair", "simclr", {"rates": both})]
    assert [(case.encoder, case.verdict) for case in cases("C7", found)] == [
        ("simclr (repair) at 1e-05", c7),
        ("simclr (repair) at 0.0002", c7),
    ]
    assert {case.verdict for case in cases("C8", found)} == {c8}


def test_a_tiny_but_certain_change_in_sparsity_is_none():
    certain = compared()
    certain["differences"]["qscore"]["plain"]["hoyer"] = {"value": 1e-6, "low": 9e-7, "high": 1.1e-6}
    [case] = cases("C8", [result("repair", "simclr", {"rates": {"paper": certain}})])
    assert case.verdict == FAILS


def test_without_a_random_d_c7_asks_for_the_arms_that_were_run():
    tuned = compared()
    del tuned["differences"]["qscore"]["random-d"]
    [case] = cases("C7", [result("methods", "byol", {"rise": RISING, **measured(), "tuned": tuned})])
    assert (case.verdict, case.undertrained) == (HOLDS, True)


def test_controls_and_unfinished_curves_are_no_cases():
    point = {"epoch": 10, "rise": RISING, **measured()}
    found = [
        result("curve", "random-512", {"checkpoints": [point]}),
        result("curve", "supervised-512", {"checkpoints": [point]}),
        result("curve", "simclr-512", {"checkpoints": [point]}, complete=False),
        result(
            "curve", "vicreg-512", {"checkpoints": [{**point, "rise": None, **measured(undefined="at chance")}, point]}
        ),
        result("methods", "byol", {"rise": STILL, **measured()}, seed=2),
    ]
    assert [(case.encoder, case.undertrained) for case in cases("C1", found)] == [
        ("vicreg-512 (curve)", True),
        ("byol, seed 2 (methods)", False),
    ]


@pytest.mark.parametrize(
    ("from_start", "from_plain", "verdict"),
    [(HOLDS, HOLDS, HOLDS), (HOLDS, FAILS, FAILS), (WEAKLY, HOLDS, WEAKLY), (UNTESTED, HOLDS, UNTESTED)],
)
def test_c10_must_hold_against_plain_fine_tuning_too(from_start, from_plain, verdict):
    places = {"start": explained({}), "free": explained({})}
    places |= {"from-start": explained({"C10": from_start}), "from-plain": explained({"C10": from_plain})}
    found = [result("shapes", "simclr", {"rise": None, "explained": places})]
    assert [case.verdict for case in cases("C10", found)] == [verdict]


def test_c3_is_read_where_backgrounds_are_free_and_the_others_where_they_are_tied():
    places = {"start": explained(dict.fromkeys(("C3", "C4", "C9"), WEAKLY)), "free": explained({"C3": HOLDS}, 0.3)}
    found = [result("shapes", "simclr", {"rise": STILL, "explained": places})]
    first, others = cases("C3", found), [case for name in ("C4", "C9") for case in cases(name, found)]
    assert [(case.verdict, case.value) for case in first] == [(HOLDS, 0.3)]
    assert [(case.verdict, case.value) for case in others] == [(WEAKLY, 0.1)] * 2


def test_the_supervised_control_counts_for_no_claim():
    places = {"start": explained(dict.fromkeys(("C3", "C4", "C9"), HOLDS)), "free": explained({"C3": HOLDS})}
    found = [result("shapes", "supervised", {"rise": None, "explained": places})]
    assert [cases(name, found) for name in ("C3", "C4", "C9", "C10")] == [[], [], [], []]
    shown = [cases(name, [*found, *everything()], controls=True) for name in CLAIMS]
    random = [[HOLDS], [WEAKLY], [HOLDS], [HOLDS], [HOLDS], [HOLDS], [], []]  # of random weights, but for C3 and C4
    assert [[case.verdict for case in of] for of in shown] == [*random, [HOLDS], []]


def test_every_claim_has_a_verdict():
    verdicts = {name: verdict for name, (verdict, _) in judge(everything()).items()}
    assert list(verdicts) == list(CLAIMS) == [f"C{k}" for k in range(1, 11)]
    assert verdicts == {
        "C1": HOLDS, "C2": WEAKLY, "C3": HOLDS, "C4": WEAKLY, "C5": HOLDS, "C6": HOLDS, "C7": HOLDS, "C8": HOLDS,
        "C9": FAILS, "C10": WEAKLY,
    }  # fmt: skip
    assert {verdict for verdict, _ in judge([]).values()} == {"not yet run"}


def test_the_committed_results_can_be_read():
    folder = Path(__file__).parents[2] / "docs" / "results"
    assert all(found["found"] for found in read_results(folder))


def test_a_collapsed_encoder_is_a_case_that_cannot_be_tested():
    failed = {"rise": None, "failed": "all representations\nare the same."}
    on_images, on_shapes = (result(stage, "dino", failed) for stage in ("methods", "shapes"))
    for name in CLAIMS:
        [case] = cases(name, [on_images, on_shapes])
        assert (case.verdict, case.reason) == (UNTESTED, "all representations are the same")
        assert case.stage == ("shapes" if name in ("C3", "C4", "C9", "C10") else "methods")
        assert cases(name, [on_images], controls=True) == []
    assert [verdict for verdict, _ in judge([on_images, on_shapes]).values()] == [UNTESTED] * 10


@pytest.mark.parametrize("claim", ["C1", "C2", "C5", "C6"])
def test_a_curve_is_judged_by_its_last_checkpoint_though_it_failed(claim):
    good, bad = {"epoch": 10, "rise": None, **measured()}, {"epoch": 20, "failed": "not finite"}
    [case] = cases(claim, [result("curve", "simclr-512", {"checkpoints": [good, bad]})])
    assert (case.verdict, case.reason) == (UNTESTED, "not finite")
    [case] = cases(claim, [result("curve", "simclr-512", {"checkpoints": [bad, good]})])
    assert case.verdict != UNTESTED
    assert cases(claim, [result("curve", "simclr-512", {"checkpoints": [good, bad]}, complete=False)]) == []


@pytest.mark.parametrize("claim", ["C7", "C8"])
def test_a_fine_tuning_that_was_refused_or_diverged_cannot_be_tested(claim):
    [case] = cases(claim, [result("methods", "byol", {"rise": RISING, **measured(), "tuned": REFUSED})])
    assert (case.verdict, case.reason) == (UNTESTED, "its features are signed")
    assert (case.encoder, case.undertrained) == ("byol (methods) at 0.0002", True)
    for arm, title in (("qscore", "Q-Score"), ("plain", "plain")):
        [case] = cases(claim, [result("repair", "simclr", {"rates": {"paper": diverged(arm)}})])
        assert (case.verdict, case.reason) == (UNTESTED, f"{title}: the loss is NaN at step 3")
    assert cases(claim, [result("methods", "byol", {"rise": None, **measured(), "tuned": {}})]) == []


def test_c10_after_a_refusal_or_a_diverged_arm_is_told_with_the_reason():
    for complete in (False, True):
        [case] = cases("C10", [unexplained(complete=complete, tuned=REFUSED)])
        assert (case.verdict, case.reason) == (UNTESTED, "its features are signed")
        [case] = cases("C10", [unexplained(complete=complete, tuned=diverged("plain"))])
        assert (case.verdict, case.reason) == (UNTESTED, "plain: the loss is NaN at step 3")
    assert cases("C10", [unexplained(complete=False)]) == cases("C10", [unexplained(complete=False, tuned={})]) == []
    assert cases("C10", [unexplained(complete=False, tuned=compared())]) == []
    [case] = cases("C10", [unexplained(complete=True, tuned=compared())])
    assert (case.verdict, case.reason) == (UNTESTED, "an arm of the fine-tuning has no numbers")


@pytest.mark.parametrize(
    ("claim", "where", "name"),
    [
        ("C5", ("scores", "q_score", "auroc"), "value"),
        ("C5", ("scores", "q_score", "auroc"), "low"),
        ("C6", ("compression", 0), "change"),
        ("C6", ("compression", 0), "change_low"),
        ("C7", ("tuned", "differences", "qscore", "plain", "accuracy"), "value"),
        ("C8", ("tuned", "differences", "qscore", "plain", "hoyer"), "value"),
    ],
)
def test_a_number_that_was_not_measured_cannot_be_tested(claim, where, name):
    found = {"rise": STILL, **measured(), "tuned": compared()}
    [case] = cases(claim, [result("methods", "byol", found)])
    assert case.verdict == HOLDS
    inner = found
    for step in where:
        inner = inner[step]
    inner[name] = None
    [case] = cases(claim, [result("methods", "byol", found)])
    assert case.verdict == UNTESTED and case.reason


def test_a_repair_is_as_undertrained_as_the_narrowest_curve_it_started_from():
    def curve(name, rise, **changes):
        return result("curve", name, {"checkpoints": [{"epoch": 20, "rise": rise, **measured()}]}, **changes)

    repair = result("repair", "simclr", {"rates": {"paper": compared()}})
    for rise, other, expected in ((RISING, STILL, True), (STILL, RISING, False), (None, RISING, False)):
        others = [
            curve("simclr-2048", other),
            curve("vicreg-16", other),
            curve("simclr-512", other, seed=1),
            curve("simclr-256", other, complete=False),
        ]
        for claim in ("C7", "C8"):
            [case] = cases(claim, [*others, curve("simclr-512", rise), repair])
            assert case.undertrained is expected
    [case] = cases("C7", [repair])
    assert case.undertrained is False


def unmet(case):
    """Return the conditions that were not met: the decisive ones, and those asked beyond."""
    return tuple(
        [c.words for c in case.conditions if c.decisive == decisive and not c.met] for decisive in (True, False)
    )


def conditions(*met):
    return {f"condition {k}": value for k, value in enumerate(met)}


def test_what_was_not_met_is_named_what_decides_and_what_is_asked_beyond():
    found = measured()
    found["claims"] |= {"verdicts": {"C1": FAILS, "C2": WEAKLY}}
    found["claims"]["conditions"] = {
        "C1": conditions(True, False, False, True),
        "C2": conditions(True, True, False, None),
    }
    first, second = (cases(name, [result("methods", "byol", {"rise": STILL, **found})])[0] for name in ("C1", "C2"))
    assert unmet(first) == (["condition 1"], ["condition 2"]) and len(first.conditions) == 4
    assert unmet(second) == ([], ["condition 2", "condition 3"])
    assert [condition.met for condition in second.conditions] == [True, True, False, None]
    [older] = cases("C1", [methods()])
    assert older.conditions == ()


def test_both_judgements_have_equally_many_decisive_conditions():
    assert evaluate_judgement.N_DECISIVE == explain_judgement.N_DECISIVE


@pytest.mark.parametrize(
    ("from_start", "from_plain", "value"), [(HOLDS, FAILS, 0.2), (FAILS, WEAKLY, 0.1), (WEAKLY, WEAKLY, 0.2)]
)
def test_c10_shows_the_worse_comparison_and_what_either_did_not_meet(from_start, from_plain, value):
    places = {
        "from-start": explained({"C10": from_start}, 0.1) | {"conditions": {"C10": conditions(True, False)}},
        "from-plain": explained({"C10": from_plain}, 0.2) | {"conditions": {"C10": conditions(False, True, False)}},
    }
    [case] = cases("C10", [result("shapes", "simclr", {"rise": None, "explained": places})])
    assert case.value == value
    assert unmet(case) == (
        ["condition 1, against the start", "condition 0, against plain fine-tuning"],
        ["condition 2, against plain fine-tuning"],
    )


@pytest.mark.parametrize(
    ("claim", "changes", "decisive", "beyond"),
    [
        ("C5", {}, (), ()),
        ("C5", {"auroc": (0.56, 0.55, 0.58)}, (), (REACHES,)),
        ("C5", {"auroc": (0.5, 0.4, 0.6)}, ("an AUROC above 0.5",), (REACHES,)),
        ("C5", {"gain_on_norm": None}, (), ("a gain on top of the norm",)),
        ("C6", {"compression": [SIXTY | {"random_high": 0.6}]}, (), (RANDOM_SETS,)),
        ("C6", {"compression": [SIXTY | {"holds": False, "retained": False}]}, ("a change above -1 point",), ()),
    ],
)
def test_c5_and_c6_name_what_was_not_met(claim, changes, decisive, beyond):
    [case] = cases(claim, [methods(**changes)])
    assert unmet(case) == ([*decisive], [*beyond])


STILL_0, RANDOM_D = "accuracy above that at learning rate 0", "accuracy above that with a random D"


@pytest.mark.parametrize(
    ("claim", "changes", "decisive", "beyond"),
    [
        ("C7", {}, (), ()),
        (
            "C7",
            {"accuracy": (0.01, -0.001, 0.02), "on_still": 0},
            ("accuracy above that of plain fine-tuning",),
            (STILL_0,),
        ),
        (
            "C7",
            {"on_random": 0, "on_still": 0, "seeds": (1, -1)},
            (),
            ("a higher accuracy with every seed", STILL_0, RANDOM_D),
        ),
        (
            "C8",
            {"hoyer": 0.0},
            ("Hoyer sparsity above that of plain fine-tuning", "a rise by 0.001"),
            ("a rise by 0.01",),
        ),
        ("C8", {"hoyer": 0.0095, "zeros": 0.0}, (), ("a rise by 0.01", "a larger share of exact zeros")),
    ],
)
def test_c7_and_c8_name_what_was_not_met(claim, changes, decisive, beyond):
    [case] = cases(claim, [result("repair", "simclr", {"rates": {"paper": compared(**changes)}})])
    assert (unmet(case), case.seeds, case.stage) == (([*decisive], [*beyond]), 2, "repair")


def test_why_an_explanation_cannot_test_a_claim_is_told():
    untested = explained({"C4": UNTESTED}) | {"reasons": {"C4": "no feature outside D is active."}}
    [case] = cases("C4", [result("shapes", "simclr", {"rise": None, "explained": {"start": untested}})])
    assert (case.verdict, case.reason) == (UNTESTED, "no feature outside D is active")
