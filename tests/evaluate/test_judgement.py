import dataclasses
import math

import pytest

from qscore.evaluate.judgement import SCOPES, ClaimTable, Measure, judge

OVERALL, WITHIN = SCOPES
D = "purity_discriminative"
# What both claims in full need: (value, low, high) of each number that a rule looks at.
IDEAL = {
    ("z", OVERALL, "cliffs_delta"): (0.2, 0.1, 0.3),
    ("z", WITHIN, "cliffs_delta"): (0.05, 0.01, 0.1),
    ("n_active", OVERALL, "cliffs_delta"): (-0.05, -0.1, -0.01),
    ("n_active", WITHIN, "cliffs_delta"): (-0.05, -0.1, -0.01),
    (D, OVERALL, "excess"): (0.05, 0.01, 0.1),
    (D, WITHIN, "excess"): (0.05, 0.01, 0.1),
    (f"{D} - purity_random", OVERALL, "excess"): (0.05, 0.01, 0.1),
    (f"{D} - purity_frequent", OVERALL, "excess"): (0.05, 0.01, 0.1),
    ("purity_random", OVERALL, "excess_p95"): (0.04, math.nan, math.nan),
    ("n_discriminative", OVERALL, "cliffs_delta"): (0.2, 0.1, 0.3),
    ("n_discriminative", WITHIN, "cliffs_delta"): (0.05, 0.01, 0.1),
}
UNCLEAR = (0.05, -0.01, 0.1)


def table(changes=None, without=(), **fields):
    numbers = {key: value for key, value in {**IDEAL, **(changes or {})}.items() if key not in without}
    measures = tuple(Measure(*key, *value, 600, 300, 1) for key, value in numbers.items())
    return dataclasses.replace(ClaimTable(measures, 600, 300, 9, 10, 0, 0, 0, 40, 20, False), **fields)


def verdicts(*arguments, **fields):
    return tuple(found.verdict for found in judge(table(*arguments, **fields)))


def test_both_claims_hold_where_every_condition_is_met():
    assert verdicts() == ("holds", "holds")
    assert all(all(found.conditions.values()) for found in judge(table()))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (("z", OVERALL, "cliffs_delta"), UNCLEAR, "does not hold here"),
        (("z", OVERALL, "cliffs_delta"), (-0.2, -0.3, -0.1), "does not hold here"),
        (("n_active", OVERALL, "cliffs_delta"), (0.05, 0.01, 0.1), "does not hold here"),
        (("n_active", OVERALL, "cliffs_delta"), UNCLEAR, "holds weakly"),
        (("z", OVERALL, "cliffs_delta"), (0.146, 0.1, 0.2), "holds weakly"),
        (("z", OVERALL, "cliffs_delta"), (0.147, 0.1, 0.2), "holds"),
        (("z", WITHIN, "cliffs_delta"), UNCLEAR, "holds weakly"),
        (("n_active", WITHIN, "cliffs_delta"), UNCLEAR, "holds weakly"),
    ],
)
def test_the_rule_of_c1(key, value, expected):
    assert verdicts({key: value}) == (expected, "holds")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ((D, OVERALL, "excess"), UNCLEAR, "does not hold here"),
        ((f"{D} - purity_random", OVERALL, "excess"), UNCLEAR, "does not hold here"),
        (("purity_random", OVERALL, "excess_p95"), (0.05, math.nan, math.nan), "does not hold here"),
        ((f"{D} - purity_frequent", OVERALL, "excess"), UNCLEAR, "holds weakly"),
        (("n_discriminative", OVERALL, "cliffs_delta"), (0.2, -0.1, 0.5), "holds weakly"),
        (("n_discriminative", OVERALL, "cliffs_delta"), (0.146, 0.1, 0.2), "holds weakly"),
        ((D, WITHIN, "excess"), UNCLEAR, "holds weakly"),
        (("n_discriminative", WITHIN, "cliffs_delta"), UNCLEAR, "holds weakly"),
    ],
)
def test_the_rule_of_c2(key, value, expected):
    assert verdicts({key: value}) == ("holds", expected)


def test_without_labels_claims_hold_weakly_at_best():
    within = [key for key in IDEAL if key[1] == WITHIN]
    assert verdicts(without=within, n_classes=None, n_all_classes=None) == ("holds weakly", "holds weakly")
    said = table(without=within, n_classes=None, n_all_classes=None).sentences()
    assert said[0] == "Highly active features of 600 correct and 300 wrong rows."
    assert "; not tested within class)" in said[1] and said[1].endswith(
        "Conditions not met: higher Z within class; fewer highly active features within class."
    )


def test_c2_cannot_be_tested_without_d():
    nothing = (math.nan, math.nan, math.nan)
    assert verdicts({(D, OVERALL, "excess"): nothing}) == ("holds", "cannot be tested")
    said = table({(D, OVERALL, "excess"): nothing}).sentences()
    assert said[2].endswith("cannot be tested: no feature of D is highly active in any of these rows.")


def test_sentences_say_what_was_measured():
    numbers = {
        ("z", OVERALL, "mean_correct"): (7.25, 7.0, 7.5),
        ("z", OVERALL, "mean_wrong"): (6.5, 6.0, 7.0),
        (D, OVERALL, "purity"): (0.712, 0.7, 0.72),
        (f"{D} - purity_frequent", OVERALL, "excess"): (0.02, -0.01, 0.03),
        ("n_discriminative", WITHIN, "cliffs_delta"): (-1e-9, -0.01, 0.1),
    }
    said = table(numbers, n_empty_correct=3, n_empty_wrong=1, n_invalid=2, n_wrong=49, signed=True).sentences()
    assert said[0].endswith("600 correct and 49 wrong rows; within class, 9 of 10 classes count, those with both.")
    assert said[1].startswith(
        "C1 (correct rows have few, highly deviated features) holds: the highest feature lies 7.25 (correct) and 6.5 "
        "(wrong; Cliff's delta +0.200, 95 % interval +0.100 to +0.300; within class +0.050, 95 % interval +0.010 to "
        "+0.100) standard deviations above its row's mean"
    )
    assert said[1].endswith("features are highly active.")
    assert "C2 (discriminative features sit mostly in correct rows) holds weakly: of the rows" in said[2]
    assert "71.2% are correct on average over features, +5.0 (95 % interval +1.0 to +10.0) points" in said[2]
    assert "+2.0 (95 % interval -1.0 to +3.0) against as many of the most frequent features" in said[2]
    assert "within class +0.000, 95 % interval -0.010" in said[2]
    assert said[2].endswith(
        "Conditions not met: D above the most frequent features; more of D in correct rows within class."
    )
    assert said[3] == "Only 49 rows are wrong, so the intervals are wide and themselves rough."
    assert said[4].startswith("3 correct and 1 wrong rows have no highly active feature")
    assert said[5] == "2 rows that are not valid were left out." and said[6].startswith("Rows are signed")


def test_a_claim_that_fails_names_only_what_it_failed_by():
    said = table({("z", OVERALL, "cliffs_delta"): UNCLEAR}).sentences()
    assert said[1].endswith(" features are highly active. Conditions not met: higher Z.")


def test_records_are_tidy_and_what_was_not_measured_is_nan():
    found = table()
    assert found.records()[0] == {
        **dataclasses.asdict(found.measures[0]),
        "n": 900,
    }
    missing = found.get("z", "hedges_g")
    assert math.isnan(missing.value) and (missing.quantity, missing.n_correct) == ("z", 0)
