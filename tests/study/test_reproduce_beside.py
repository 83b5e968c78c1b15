from reference.study_results import RISING, STILL, compared, everything, explained, measured, number, result, sensitive

from qscore.study.reproduce.beside import beside, curve_sentences, shapes_sentences, strength_sentence
from qscore.study.reproduce.sensitivity import PAPERS
from qscore.study.reproduce.verdicts import cases, judge


def said(claim, results):
    return list(beside(claim, judge(results)[claim][0], cases(claim, results), results))


def methods(name, **changes):
    return result("methods", name, {"rise": STILL, **measured(**changes)})


def tuned(name, norm=0.5, **changes):
    of = compared(**changes)
    of["arms"]["qscore"]["gradient_ratios"] = {"gradient_ratio_1": {"mean": 0.1}, "gradient_ratio_2": {"mean": norm}}
    return result("methods", name, {"rise": STILL, **measured(), "tuned": of})


def curve(name, *points, **changes):
    points = [{"epoch": 10 * k, "rise": None, **point} for k, point in enumerate(points, 1)]
    return result("curve", name, {"checkpoints": points}, **changes)


def test_controls_are_judged_by_the_same_rule_and_shown():
    found = [methods("byol"), curve("random-512", measured(auroc=(0.545, 0.533, 0.556), above=0.0))]
    [controls] = [line for line in said("C5", found) if line.startswith("Controls")]
    assert controls == "Controls, by the same rule: on random-512 (curve) it holds weakly, 0.545 (0.533, 0.556)."
    lost = [methods("byol"), curve("supervised-512", {"failed": "not finite"})]
    assert said("C6", lost)[0] == "Controls, by the same rule: on supervised-512 (curve) it cannot be tested."
    assert not said("C1", [methods("byol")])


def test_fine_tunings_of_one_method_are_counted_as_one_besides():
    rates = {"paper": compared(), "calibrated": compared()}
    found = [result("repair", "simclr", {"rates": rates}), tuned("byol", hoyer=0.0), tuned("dino", hoyer=0.0)]
    counted = "1 of the 3 methods has a case in which it holds at least weakly"
    assert said("C8", found) == [f"{counted}; counted so, the verdict would be *does not hold here*."]
    more = [*found, tuned("moco"), tuned("swav")]  # 4 of 6 cases, 3 of 5 methods
    assert said("C8", more) == ["3 of the 5 methods have a case in which it holds at least weakly."]
    assert not said("C8", found[:1]) and not said("C8", found[1:])  # all hold, none does


def test_rivals_that_are_above_q_are_named():
    rival = measured()
    rival["scores"]["knn_similarity"] = {"auroc": number(0.7)}
    rival["scores"]["q_without_d"] = rival["scores"]["softmax"] = {
        "auroc": number(0.9)
    }  # neither is a rival without labels
    found = [methods("byol"), result("methods", "dino", {"rise": STILL, **rival}), methods("moco", above=-0.02)]
    assert said("C5", found) == [
        "Of Q and its label-free rivals, the one with the highest AUROC is Q in 1, kNN similarity in 1, feature norm "
        "in 1 (of 3). The whole interval of the difference puts Q below Q without D in 1 and below the "
        "feature norm in 1."
    ]


def test_what_the_papers_epsilon_does_is_said():
    tests = {"byol": (0.5, 0.51), "moco": (0.7, 0.71)}
    found = [methods("byol"), *(sensitive(name, **{PAPERS: of}) for name, of in tests.items())]
    found[1]["found"]["sources"][0]["settings"][PAPERS]["test"]["low"] = 0.5
    assert said("C5", found)[-1] == (
        "At the paper's epsilon of 4, AUROC of Q is 0.610 on average, and the decisive condition is met in 1 of 2 "
        "encoders."
    )


def test_an_interval_that_contains_the_bound_is_told_from_one_below():
    point = measured()["compression"][0]
    of = [
        methods(
            name, compression=[point | {"change": -0.02, "change_low": -0.03, "change_high": high, "retained": False}]
        )
        for name, high in (("byol", -0.005), ("dino", -0.011))
    ]
    assert said("C6", of) == ["The whole interval lies below -1 point in 1 of 2, and above it in 0."]
    held = [methods("byol"), methods("dino")]
    assert said("C6", held) == ["The whole interval lies below -1 point in 0 of 2, and above it in 2."]


def test_where_the_regulariser_drowns_the_loss_or_nothing_moves_is_said():
    idle = tuned("dino", norm=None, on_still=0.0)
    idle["found"]["tuned"]["differences"]["plain"] = {"lr0": {"accuracy": number(0.0, -0.01, 0.01)}}
    assert said("C7", [tuned("byol", norm=1.5), idle, tuned("moco", norm=0.9)]) == [
        "In 1 of 2 the norm term's gradient is larger than that of the self-supervised loss.",
        "In 1 of 3 the accuracy of neither arm can be told from that at learning rate 0: fine-tuning was too short or "
        "too slow to show much.",
        "That leaves 1 of 3 with neither fault.",
    ]
    assert not said("C7", [tuned("moco", norm=0.9)])
    unknown = [tuned("byol", norm=1.5), tuned("moco", norm=None), tuned("dino", norm=0.0)]
    assert said("C7", unknown)[-1] == "That leaves 1 of 3 with neither fault."  # what is not known clears nothing


def test_the_curves_question_is_answered_in_numbers():
    found = [
        curve("random-512", measured(0.3, (0.54, 0.53, 0.55))),
        curve("simclr-512", measured(0.5, (0.55, 0.5, 0.6)), measured(0.6, (0.6, 0.5, 0.7), above=-0.02)),
        curve("vicreg-512", measured(0.5, above=0.0), {"failed": "not finite"}, complete=False),
    ]
    assert list(curve_sentences(found)) == [
        "simclr-512: AUROC of Q goes from 0.550 (probe 50.0 %; Q without D 0.530) to 0.600 (probe 60.0 %; "
        "Q without D 0.620).",
        "Controls: random-512 0.540 (probe 30.0 %; Q without D 0.520).",
        "Does D help? By the whole interval of the difference, Q is, against Q without D: at 3 checkpoints of 2 "
        "trainings, above in 1 and below in 1; at 1 checkpoint of 1 control, above in 1 and below in 0.",
    ]
    assert not list(curve_sentences([]))


def test_encoders_none_of_whose_features_tell_of_the_shape_are_named():
    def shapes(name, carries, looks=(-0.1, None, -0.2)):
        free = explained({}) | {"points": {"feature": [1, 2, 3], "carries_class": carries, "looks": looks}}
        return result("shapes", name, {"rise": RISING, "explained": {"free": free}})

    found = [
        shapes("simclr", (-0.1, 0.3, 0.0)),
        shapes("supervised", (-0.1, None, 0.2)),
        shapes("byol", (0, 0, 0), (1, 1, 1)),
    ]
    assert list(shapes_sentences([*found, result("shapes", "moco", {"failed": "collapsed"})])) == [
        "Features to the right of 0, and above 0: simclr 0 and 0 of 2; supervised (control) 1 and 0 of 2; byol 0 and 3 "
        "of 3.",
        "No feature of simclr tells more of the shape than of the texture, or looks more at the shape than beside it: "
        "C9 and C10, which ask about the shape, are hardly tested there.",
    ]
    assert len(list(shapes_sentences(found[1:]))) == 1 and not list(shapes_sentences([]))


def test_how_unlike_the_pull_is_from_method_to_method_is_said():
    found = [tuned("byol", norm=2.34), tuned("dino", norm=0.5), tuned("moco", norm=None)]
    assert strength_sentence(found) == (
        "The regulariser pulls very differently from method to method: the norm term's gradient is 0.5 (dino) to 2.34 "
        "(byol) of the self-supervised loss's. It is larger than the loss's own with byol."
    )
    assert strength_sentence([methods("byol")]) == strength_sentence([]) == ""


def test_the_sparsity_of_arms_without_d_stands_beside_c8():
    rate = compared()
    metrics = rate["arms"]["plain"]["metrics"]
    rate["arms"] |= {"random-d": {"title": "Q with a random D", "metrics": metrics | {"hoyer": number(0.51)}}}
    assert said("C8", [result("repair", "simclr", {"rates": {"paper": rate}}), tuned("byol")]) == [
        "The rule has no control for D. Hoyer sparsity of all arms on simclr (repair) at 1e-05: 0.500 (plain), "
        "0.500 (Q-Score), 0.510 (Q with a random D)."
    ]


def test_random_sets_of_features_stand_beside_what_d_is_said_to_do():
    def shapes(name, **records):
        places = {place.replace("_", "-"): explained({}) | {"records": rows} for place, rows in records.items()}
        return result("shapes", name, {"rise": STILL, **measured(), "explained": places})

    def record(quantity, statistic, value):
        return {"quantity": quantity, "statistic": statistic, **number(value, value - 0.01, value + 0.01)}

    start = [
        record(f"{kind}_discriminative - {kind}_random", "mean", v) for kind, v in (("core", 0.02), ("spurious", -0.03))
    ]
    change = [record("core_discriminative - core_random", s, v) for s, v in (("mean", 0.5), ("change", -0.004))]
    found = [shapes("simclr", start=start, from_plain=change), shapes("supervised", start=start[:1])]
    lead = "+0.0200 (+0.0100, +0.0300) on"
    assert said("C9", found)[-1] == (
        f"Core IoU of D, less that of random sets of active features: {lead} simclr; {lead} supervised (control)."
    )
    assert said("C4", found)[-1] == (
        "Spurious IoU of D, less that of random sets of active features: -0.0300 (-0.0400, -0.0200) on simclr."
    )
    assert said("C10", found)[-1].endswith(
        "less that of random sets of active features: -0.0040 (-0.0140, +0.0060) on simclr."
    )


def test_each_claim_has_its_own_lines():
    counts = {f"C{k}": len(said(f"C{k}", everything())) for k in range(1, 11)}
    assert counts == {"C1": 1, "C2": 1, "C5": 3, "C6": 2} | dict.fromkeys(("C3", "C4", "C7", "C8", "C9", "C10"), 0)
