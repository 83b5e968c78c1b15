from pathlib import Path

import pytest
from reference.study_results import RISING, STILL, compared, everything, explained, measured, result

from qscore.study.reproduce.results import read_results
from qscore.study.reproduce.verdicts import CLAIMS, LEAST_AUROC, Case, cases, judge, overall

HOLDS, WEAKLY, FAILS, UNTESTED = "holds", "holds weakly", "does not hold here", "cannot be tested"


def methods(**changes):
    return result("methods", "byol", {"rise": STILL, **measured(**changes)})


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
    [({}, HOLDS), ({"holds": False}, WEAKLY), ({"holds": False, "retained": False}, FAILS)],
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
    refused = {"learning_rate": 1e-5, "refused": "it is signed"}
    assert cases("C7", [result("methods", "byol", {"rise": None, **measured(), "tuned": refused})]) == []
    diverged = compared() | {"differences": {}}
    [case] = cases("C7", [result("repair", "simclr", {"rates": {"paper": diverged}})])
    assert case.verdict == UNTESTED


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
        ("byol (methods, seed 2)", False),
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
    del places["from-start"], places["from-plain"]
    assert cases("C10", found) == []


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
