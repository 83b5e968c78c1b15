import json
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from qscore import QScoreError
from qscore.evaluate.probes import PROBES, devices, fit_probe, fit_table_probe
from qscore.evaluate.probes.devices import Placement, place

UNKNOWN = "probe 'logistik': expected one of logistic, knn, sgd; did you mean 'logistic'?"


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:900].astype(np.float32), y[:900], X[900:].astype(np.float32), y[900:]


@pytest.mark.parametrize(("kind", "least"), [("logistic", 0.9), ("knn", 0.9), ("sgd", 0.9)])
def test_every_kind_learns_digits_and_describes_itself(digits, kind, least):
    H, labels, test, truth = digits
    names = np.array([f"digit {k}" for k in labels])
    probe = fit_probe(kind, H, names, device="cpu", test_labels=[f"digit {k}" for k in truth])
    predicted, confidence = probe.predict(test)
    correct = predicted == [f"digit {k}" for k in truth]
    assert correct.mean() > least
    assert confidence.dtype == np.float64 and (confidence > 0.1 - 1e-9).all() and (confidence <= 1).all()
    assert confidence[correct].mean() > confidence[~correct].mean() + 0.1
    described = probe.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["kind"] == kind and described["n_train"] == 900 and described["n_classes"] == 10
    assert described["majority"] == pytest.approx((truth == np.bincount(labels).argmax()).mean())
    assert described["probability"] == PROBES[kind].probability == (kind != "knn")
    assert probe.title == PROBES[kind].title and all(said.endswith(".") for said in probe.sentences())


@pytest.mark.parametrize("kind", PROBES)
def test_the_probe_is_a_function_of_rows_labels_and_seed(digits, kind):
    H, labels, test, _ = digits
    H, labels = H[:200], labels[:200]
    one, same = (fit_probe(kind, H, labels, seed=1).predict(test) for _ in range(2))
    named = fit_probe(kind, H, [chr(97 + k) for k in labels], seed=1).predict(test)
    np.testing.assert_array_equal(one[1], same[1])
    np.testing.assert_array_equal(one[1], named[1])
    assert [chr(97 + k) for k in one[0]] == named[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "logistik"}, UNKNOWN),
        ({"kind": "logistik", "encoder": "x"}, UNKNOWN),
        ({"kind": "knn", "seed": -1}, "expected seed >= 0, got -1"),
        (
            {"kind": "knn", "encoder": "x"},
            "probe 'knn' is fitted on the embeddings and takes no encoder; only 'sgd' does",
        ),
        (
            {"kind": "sgd", "encoder": "x"},
            "probe 'sgd' with an encoder: the training table has no column 'path' that leads to every image; "
            "leave the encoder out to train on the embeddings",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(QScoreError) as error:
        fit_table_probe(H=np.eye(4), labels=[0, 1, 0, 1], **arguments)
    assert str(error.value) == message


def test_a_small_job_stays_off_the_gpu_and_torch_is_not_loaded():
    code = (
        "import sys, numpy as np; from qscore.evaluate.probes import fit_probe\n"
        "for kind in ('logistic', 'knn'):\n"
        "    fit_probe(kind, np.random.default_rng(0).normal(size=(40, 3)), [0, 1] * 20).predict(np.ones((2, 3)))\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_where_work_is_done(monkeypatch):
    torch = pytest.importorskip("torch")
    asked = []
    monkeypatch.setattr(
        "qscore.embedding.network.pick_device", lambda name: asked.append(name) or torch.device("cuda", 0)
    )
    assert place("cpu", 1e20) == place("auto", 1e3) == Placement() and not asked
    assert place("auto", 1e13) == place("cuda", 1e3) == Placement(torch.device("cuda", 0)) and asked == ["auto", "cuda"]
    monkeypatch.setattr("qscore.embedding.network.pick_device", lambda _: torch.device("mps"))
    with pytest.raises(QScoreError, match="^device 'mps': probes run on cpu or cuda$"):
        place("mps", 1.0)
    monkeypatch.setattr("qscore.embedding.network.pick_device", lambda _: torch.device("cpu"))
    assert place("auto", 1e13) == Placement()


def test_the_switch_for_tensors_is_put_back(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv(devices.SWITCH, "0")
    with pytest.raises(KeyError), Placement(torch.device("cpu")).dispatched():
        raise KeyError
    assert os.environ[devices.SWITCH] == "0"
