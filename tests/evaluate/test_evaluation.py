import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from qscore import QScoreError, core, evaluate_scores, score
from qscore.evaluate import SCORES
from qscore.evaluate.probe import fit_probe
from qscore.tables import write_shard


def write_table(path, H, labels=None, prefix="i"):
    columns = {"id": pa.array([f"{prefix}{k}" for k in range(len(H))])}
    if labels is not None:
        columns["label"] = pa.array(labels)
    write_shard(path, H.astype(np.float32), columns, {})
    return path


def planted(rng, n=2000, r=200, classes=10, wrong=0.2):
    """Rows of a class light four features of their own, strongly; a fifth of the rows light another class's, faintly.

    Among the ten features that always fire and the noise, only the class features tell; so Q must succeed.
    """
    labels = rng.integers(0, classes, n)
    H = rng.gamma(0.3, 0.05, size=(n, r))
    H[:, :10] += rng.uniform(3.0, 4.0, size=(n, 10))
    faint = rng.random(n) < wrong
    shown = np.where(faint, (labels + rng.integers(1, classes, n)) % classes, labels)
    for i, k in enumerate(shown):
        H[i, 100 + 4 * k : 104 + 4 * k] += rng.uniform(5.0, 5.5, 4) if faint[i] else rng.uniform(8.0, 9.0, 4)
    return H, labels


def null(rng, n=2000, r=120, classes=10):
    """Features that fire at random, and labels that follow one weak direction of noise: Q has nothing to find."""
    labels = rng.integers(0, classes, n)
    H = rng.gamma(0.2, size=(n, r))
    H[np.arange(n), labels] += rng.uniform(0, 1.0, size=n)
    return H, labels


def evaluated(tmp_path, H, labels, **options):
    table = write_table(tmp_path / "e.parquet", H, labels)
    score(table, tmp_path / "s.parquet", epsilon=2.0, overwrite=True)
    return evaluate_scores(tmp_path / "s.parquet", table, overwrite=True, **options)


def test_q_succeeds_where_it_must(tmp_path, rng):
    metrics = evaluated(tmp_path, *planted(rng), resamples=300)
    assert metrics["scores"]["q_score"]["auroc"]["low"] > 0.95
    assert any("better than chance" in sentence for sentence in metrics["sentences"])


def test_q_finds_nothing_where_there_is_nothing(tmp_path):
    rng = np.random.default_rng(5)
    H, labels = null(rng)
    shuffled = H[:, rng.permutation(H.shape[1])]
    metrics = evaluated(tmp_path, shuffled, rng.permutation(labels), resamples=300)
    auroc = metrics["scores"]["q_score"]["auroc"]
    assert auroc["low"] <= 0.5 <= auroc["high"]
    assert any("not to be told from chance" in sentence for sentence in metrics["sentences"])


def test_results_are_written_and_hold_every_score(tmp_path, rng):
    metrics = evaluated(tmp_path, *planted(rng), resamples=50)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    table = pq.read_table(tmp_path / "evaluation.parquet")
    assert table.column_names == ["id", "predicted", "correct", "fold", *(s.name for s in SCORES)]
    assert table.num_rows == metrics["n"] == 400
    assert pa.compute.sum(table["correct"]).as_py() == metrics["probe"]["n_correct"]
    assert metrics["base_rate"]["correct"] == metrics["probe"]["accuracy"]


def test_scores_are_what_their_names_say(tmp_path, rng):
    H, labels = planted(rng, n=300)
    H = H.astype(np.float32)
    evaluated(tmp_path, H, labels, resamples=10)
    table = pq.read_table(tmp_path / "evaluation.parquet")
    rows = [int(key[1:]) for key in table["id"].to_pylist()]
    test, train = H[rows], np.delete(H, rows, axis=0)
    D = core.discriminative_features(core.activation_rates(H, 2.0))
    r = H.shape[1]
    expected = {
        "q_score": core.q_score(test, D, 2.0),
        "q_without_d": core.q_score(test, np.arange(r), 2.0),
        "q1": core.q_score_v1(test),
        "l2_norm": [math.sqrt(math.fsum(x * x for x in row)) for row in test.tolist()],
        "hoyer": [
            (math.sqrt(r) - math.fsum(row) / math.sqrt(math.fsum(x * x for x in row))) / (math.sqrt(r) - 1)
            for row in test.tolist()
        ],
        "knn_similarity": [
            np.mean(np.sort(train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row))[-20:]) for row in test
        ],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=2e-5, err_msg=name)


def test_a_training_table_is_used_and_ids_are_matched(tmp_path, rng):
    H, labels = planted(rng)
    train = write_table(tmp_path / "train.parquet", H[:1500], labels[:1500], "train-")
    test = write_table(tmp_path / "test.parquet", H[1500:], labels[1500:])
    score(test, tmp_path / "s.parquet", epsilon=2.0)
    metrics = evaluate_scores(tmp_path / "s.parquet", test, train, resamples=20, out=tmp_path / "out")
    backwards = write_table(tmp_path / "b.parquet", H[:1499:-1], labels[:1499:-1])
    table = pq.read_table(backwards).drop(["id"]).add_column(0, "id", pa.array([f"i{k}" for k in range(499, -1, -1)]))
    pq.write_table(table, backwards)
    again = evaluate_scores(tmp_path / "s.parquet", backwards, train, resamples=20, out=tmp_path / "again")
    assert metrics["n"] == 500 and metrics["probe"]["n_train"] == 1500
    whole, backwards = metrics.pop("representation"), again.pop("representation")
    assert again == metrics
    assert backwards["rankme"] == pytest.approx(whole["rankme"]) and backwards["n"] == 500


def test_the_probe_is_logistic_regression_on_standardised_rows(rng):
    H, labels = planted(rng, n=500)
    probe = fit_probe(H, labels)
    Z = (H - H.mean(0)) / H.std(0)
    expected = LogisticRegression(C=probe.strength, max_iter=500).fit(Z, labels)
    predicted, confidence = probe.predict(H)
    np.testing.assert_array_equal(predicted, expected.predict(Z))
    np.testing.assert_allclose(confidence, expected.predict_proba(Z).max(1), rtol=1e-6)
    assert probe.converged


def test_labels_may_be_strings_and_invalid_rows_are_left_out(tmp_path, rng):
    H, labels = planted(rng, n=600)
    H[7, 3] = np.nan
    metrics = evaluated(tmp_path, H, [f"class {k}" for k in labels], resamples=10)
    assert metrics["n"] == 120
    assert "i7" not in pq.read_table(tmp_path / "evaluation.parquet")["id"].to_pylist()


def test_a_perfect_probe_leaves_nothing_to_predict_and_says_so(tmp_path, rng):
    H, labels = planted(rng, n=600, wrong=0.0)
    metrics = evaluated(tmp_path, H, labels)
    assert metrics["scores"] == {} and "All rows are correct" in " ".join(metrics["sentences"])
    assert {record["keep"] for record in metrics["compression"]} >= {0.45, 0.6, 1.0}


def test_no_labels(tmp_path, rng):
    H, labels = planted(rng, n=100)
    train = write_table(tmp_path / "t.parquet", H, labels)
    with pytest.raises(QScoreError, match="no column 'label'"):
        evaluated(tmp_path, H, None, train_embeddings=train)


def test_missing_labels(tmp_path, rng):
    H, labels = planted(rng, n=100)
    with pytest.raises(QScoreError, match="1 of 100 rows have no label"):
        evaluated(tmp_path, H, [None, *labels[1:].tolist()])


def test_one_class_only(tmp_path, rng):
    H, _ = planted(rng, n=100)
    with pytest.raises(QScoreError, match="at least two classes, got 1"):
        evaluated(tmp_path, H, [4] * 100)


def test_fewer_rows_than_classes(tmp_path, rng):
    H, _ = planted(rng, n=100)
    with pytest.raises(QScoreError, match="cannot split 100 rows 80 / 20"):
        evaluated(tmp_path, H, list(range(100)))


def test_ids_that_do_not_match(tmp_path, rng):
    H, labels = planted(rng, n=100)
    table = write_table(tmp_path / "e.parquet", H, labels)
    other = write_table(tmp_path / "o.parquet", H[:90], labels[:90])
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    with pytest.raises(QScoreError, match="10 of 100 scored ids are not in .*o.parquet, the first is 'i90'"):
        evaluate_scores(tmp_path / "s.parquet", other)


def test_duplicate_ids_are_refused(tmp_path, rng):
    H, labels = planted(rng, n=100)
    table = write_table(tmp_path / "e.parquet", H, labels)
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    twice = write_table(tmp_path / "t.parquet", np.concatenate([H, H[:3]]), np.concatenate([labels, labels[:3]]))
    content = pq.read_table(twice)
    ids = [f"i{k}" for k in [*range(100), 0, 1, 2]]
    pq.write_table(content.drop(["id"]).add_column(0, "id", pa.array(ids)), twice)
    with pytest.raises(QScoreError, match="t.parquet: 3 ids come more than once"):
        evaluate_scores(tmp_path / "s.parquet", twice)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("same", "the training table is the table under test"),
        ("narrow", "has 100 features, and the rows under test 200"),
        ("names", "its labels are string, those of the rows under test int64"),
        ("images", "3 images are under test too"),
    ],
)
def test_training_tables_that_do_not_fit_are_refused(tmp_path, rng, train, message):
    H, labels = planted(rng, n=300)
    paths = {"path": pa.array([f"{i}.png" for i in range(300)]), "id": pa.array([f"i{i}" for i in range(300)])}
    write_shard(tmp_path / "e.parquet", H.astype(np.float32), {**paths, "label": pa.array(labels)}, {})
    score(tmp_path / "e.parquet", tmp_path / "s.parquet", epsilon=2.0)
    other = tmp_path / ("e.parquet" if train == "same" else "t.parquet")
    if train == "narrow":
        write_table(other, H[:, :100], labels)
    elif train == "names":
        write_table(other, H, [f"class {k}" for k in labels])
    elif train == "images":
        moved = {"path": pa.array([f"{i + 297}.png" for i in range(300)]), "id": paths["id"]}
        write_shard(other, H.astype(np.float32), {**moved, "label": pa.array(labels)}, {})
    with pytest.raises(QScoreError, match=message):
        evaluate_scores(tmp_path / "s.parquet", tmp_path / "e.parquet", other)


def test_results_that_are_there_need_overwrite(tmp_path, rng):
    H, labels = planted(rng, n=300)
    table = write_table(tmp_path / "e.parquet", H, labels)
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(QScoreError, match="metrics.json exists"):
        evaluate_scores(tmp_path / "s.parquet", table)
    assert (tmp_path / "metrics.json").read_text() == "mine"
