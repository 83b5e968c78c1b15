"""Planted result files: the least that tables and verdicts read."""


def number(value, low=None, high=None):
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


def measured(accuracy=0.6, auroc=(0.6, 0.58, 0.62), above=0.02, gain=0.01, **changes):
    """What `condense` makes of an evaluation in which all that C1, C2, C5 and C6 ask for is met."""
    scores = {"q_score": number(*auroc)} | dict.fromkeys(
        ("q_without_d", "q_random_d", "l2_norm"), number(auroc[0] - above)
    )
    rows = [
        {"quantity": quantity, "statistic": statistic, "scope": "overall", **number(0.2, 0.1, 0.3)}
        for quantity, statistic in (("z", "cliffs_delta"), ("purity_discriminative", "excess"))
    ]
    point = {"keep": 0.6, "change": -0.001, "change_low": -0.004, "change_high": 0.002, "retained": True}
    point |= {"accuracy": 0.6, "random_high": 0.59, "holds": True}
    found = {
        "accuracy": accuracy,
        "n_features": 512,
        "epsilon": 2.5,
        "coverage": 0.97,
        "undefined": None,
        "scores": {
            name: {"auroc": of, "ap_correct": number(0.7), "ap_wrong": number(0.5)} for name, of in scores.items()
        },
        "q_minus": {name: {"auroc": number(above, above - 0.01, above + 0.01)} for name in list(scores)[1:]},
        "gain_on_norm": number(gain, gain - 0.005, gain + 0.005),
        "claims": {"verdicts": {"C1": "holds", "C2": "holds weakly"}, "records": rows},
        "compression": [point],
    }
    return found | changes


def compared(accuracy=(0.02, 0.01, 0.03), on_still=0.02, on_random=0.02, hoyer=0.02, zeros=0.01, seeds=(0.02, 0.02)):
    """What `compare` finds where C7 and C8 hold."""

    def change(value):
        return number(value, value - 0.005, value + 0.005)

    plain = number(*accuracy) | {"seeds": {str(k): v for k, v in enumerate(seeds)}, "relative": number(0.03)}
    of = {
        "plain": {"accuracy": plain, "hoyer": change(hoyer), "zeros": change(zeros)},
        "lr0": {"accuracy": change(on_still)},
        "random-d": {"accuracy": change(on_random)},
    }
    metrics = {
        "accuracy": number(0.62) | {"seeds_sd": 0.004},
        "auroc": number(0.6),
        "q_over_sigma": number(2.1),
        "hoyer": number(0.5),
        "zeros": number(0.4),
    }
    return {
        "learning_rate": 1e-5,
        "epsilon": 2.5,
        "n_discriminative": 200,
        "settings": {"epochs": 2, "optimizer": "adamw"},
        "seeds": list(range(len(seeds))),
        "start": {name: metrics[name] for name in metrics},
        "arms": {"plain": {"title": "plain", "metrics": metrics}, "qscore": {"title": "Q-Score", "metrics": metrics}},
        "differences": {"qscore": of},
    }


def explained(verdicts, value=0.1):
    rows = (
        ("gap_discriminative - gap_random", "mean"),
        ("spurious_discriminative - spurious_outside", "mean"),
        ("q_score ~ core_discriminative", "spearman"),
        ("core_discriminative", "change"),
    )
    records = [{"quantity": q, "statistic": s, **number(value, value - 0.05, value + 0.05)} for q, s in rows]
    scatter = {name: number(0.5, 0.3, 0.7) | {"n": 3} for name in ("carries", "carries_class")}
    return {"n": 100, "verdicts": verdicts, "conditions": {}, "records": records, "scatter": scatter}


def result(stage, name, found, *, method=None, scale="small", seed=0, **changes):
    head = {"version": 1, "scale": scale, "stage": stage, "name": name, "method": method or name.partition("-")[0]}
    images = (
        {"name": "train-0.npz", "n": 12500, "fingerprint": "a"},
        {"name": "test.npz", "n": 10000, "fingerprint": "b"},
    )
    record = {
        "complete": True,
        "seconds": 5400.0,
        "settings": {
            "backbone": "small:resnet10-16-r512",
            "curve_epochs": 60,
            "repair_epochs": 2,
            "tune_optimizer": "adamw",
        },
        "images": dict(zip(("train", "test"), images, strict=True)),
        "command": f"qscore reproduce --scale {scale} --stage {stage}",
        "trained_here": True,
        "hardware": {"device": "cpu", "processor": "a processor", "cores": 2, "threads": 1},
        "software": {"qscore": "0.1.0", "torch": "2.15.0"},
    }
    return head | {"seed": seed} | record | changes | {"found": found}


RISING = {"rise": 0.03, "standard_error": 0.004, "rising": True}
STILL = {"rise": 0.001, "standard_error": 0.004, "rising": False}


def sensitive(method, **settings):
    """A result of stage ``sensitivity`` from setting -> (AUROC on training rows, on test rows)."""
    of = {name: {"train": train, "test": number(test)} for name, (train, test) in settings.items()}
    return result("sensitivity", method, {"sources": [{"source": f"methods-{method}", "settings": of}]})


def everything():
    """One result of each stage."""
    all_hold = dict.fromkeys(("C3", "C4", "C9", "C10"), "holds")
    weak = {"C3": "cannot be tested", "C4": "holds weakly", "C9": "does not hold here", "C10": "holds weakly"}
    places = {"start": explained(weak), "free": explained(all_hold)}
    places |= {"from-start": explained(all_hold), "from-plain": explained(weak)}
    places["free"]["points"] = {"feature": [3, 5, 8], "carries_class": [-0.1, 0.0, 0.2], "looks": [-0.6, -0.2, 0.1]}
    points = [{"epoch": 10, "rise": None, **measured(0.5)}, {"epoch": 20, "rise": RISING, **measured(0.6)}]
    tuned = compared() | {"learning_rate": 2e-4}
    return [
        result("curve", "random-512", {"checkpoints": [{"epoch": 0, "rise": None, **measured(0.3)}]}),
        result("curve", "simclr-512", {"checkpoints": points}, trained_here=False),
        result("repair", "simclr", {"rates": {"paper": compared(), "calibrated": tuned}}),
        result("methods", "byol", {"rise": STILL, **measured(0.55), "tuned": tuned}),
        result("shapes", "simclr", {"rise": STILL, **measured(), "explained": places, "tuned": tuned}),
        sensitive(
            "byol", **{"raw, epsilon 4, band 50-95, q": (0.5, 0.51), "raw, epsilon auto, band 50-95, q": (0.6, 0.61)}
        ),
        sensitive(
            "moco", **{"raw, epsilon 4, band 50-95, q": (0.7, 0.71), "raw, epsilon auto, band 50-95, q": (0.5, 0.52)}
        ),
    ]
