import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qscore import QScoreError, core, evaluate_scores, score
from qscore.evaluate import SCORES
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
    """Features that fire at random, and labels in the direction of a tenth of them: Q has nothing to find.

    The direction is a step down in one feature of rows that are otherwise noise, the same for all rows of a class, so
    that no row shows its class better than another.
    """
    labels = rng.integers(0, classes, n)
    H = 1.0 + rng.gamma(0.2, size=(n, r))
    H[np.arange(n), labels] -= 1.0
    return H, np.where(rng.random(n) < 0.3, rng.integers(0, classes, n), labels)


def evaluated(tmp_path, H, labels, **options):
    table = write_table(tmp_path / "e.parquet", H, labels)
    score(table, tmp_path / "s.parquet", epsilon=2.0, overwrite=True)
    return evaluate_scores(tmp_path / "s.parquet", table, overwrite=True, **options)


def test_q_succeeds_where_it_must(tmp_path, rng):
    metrics = evaluated(tmp_path, *planted(rng), resamples=300)
    assert metrics["scores"]["q_score"]["auroc"]["low"] > 0.95
    assert any("better than chance" in sentence for sentence in metrics["sentences"])


def test_q_finds_nothing_where_there_is_nothing(tmp_path):
    metrics = evaluated(tmp_path, *null(np.random.default_rng(5)), resamples=300)
    auroc = metrics["scores"]["q_score"]["auroc"]
    assert auroc["low"] <= 0.5 <= auroc["high"]
    assert any("not to be told from chance" in sentence for sentence in metrics["sentences"])


def test_a_probe_at_chance_has_no_failures_to_predict(tmp_path, rng):
    H, labels = planted(rng, n=600)
    metrics = evaluated(tmp_path, H, rng.permutation(labels), resamples=20)
    said = " ".join(metrics["sentences"])
    assert "the probe is at chance" in said and "failure prediction is undefined" in said and "Q ranks" not in said


def test_results_are_written_and_hold_every_score(tmp_path, rng):
    metrics = evaluated(tmp_path, *planted(rng), resamples=50)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    table = pq.read_table(tmp_path / "evaluation.parquet")
    wanted = [s.name for s in SCORES if s.name not in (*metrics["left_out"], "q_random_d")]
    assert table.column_names == ["id", "predicted", "correct", "fold", *wanted]
    assert list(metrics["left_out"]) == ["augmentation_cosine", "neighborhood_consistency"]
    assert set(metrics["scores"]) == {*wanted, "q_random_d"}
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


def test_a_column_of_labels_that_holds_none(tmp_path, rng):
    H, labels = planted(rng, n=100)
    table = write_table(tmp_path / "e.parquet", H, pa.nulls(100, pa.int64()))
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    train = write_table(tmp_path / "t.parquet", H, labels)
    with pytest.raises(QScoreError, match="has no label in any row; failure prediction needs labels to test against"):
        evaluate_scores(tmp_path / "s.parquet", table, train)


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
    with pytest.raises(QScoreError, match=r"10 of 100 ids \('i90', 'i91', 'i92', ...\) are not in .*o.parquet"):
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
        ("narrow", "t.parquet has 100 features, and .*e.parquet 200; both must come from the same encoder"),
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


def test_the_tidy_table_holds_the_numbers_of_the_json(tmp_path, rng):
    metrics = evaluated(tmp_path, *planted(rng), resamples=20)
    table = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
    rows = {(r["section"], r["subject"], r["reference"], r["class"], r["statistic"]): r for r in table}
    assert len(rows) == len(table)
    assert {r["section"] for r in table} == {
        *("failure", "difference", "gain", "class", "claim", "calibration", "compression", "representation")
    }
    q = rows["failure", "q_score", None, None, "auroc"]
    assert {key: q[key] for key in ("value", "low", "high")} == metrics["scores"]["q_score"]["auroc"]
    assert q["n"] == metrics["n"] == 400
    minus = rows["difference", "q_score", "l2_norm", None, "aurc"]
    assert minus["value"] == metrics["q_minus"]["l2_norm"]["aurc"]["value"]
    assert rows["representation", "all rows", None, None, "rankme"]["value"] == metrics["representation"]["rankme"]
    rank = next(r for r in metrics["compression"] if r["method"] == "rank" and r["keep"] == 0.6)
    assert rows["compression", "rank", "keep 0.6", None, "change"]["low"] == rank["change_low"]


def test_outcomes_of_another_classifier_take_the_probes_place(tmp_path, rng):
    H, _ = planted(rng, n=500)
    table = write_table(tmp_path / "e.parquet", H)
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    correct = rng.random(500) < 0.5 + 0.4 * (np.arange(500) % 2)
    lines = "".join(f"i{k},{'true' if correct[k] else 'false'}\n" for k in range(0, 500, 2))
    (tmp_path / "mine.csv").write_text("id,correct\n" + lines)
    metrics = evaluate_scores(tmp_path / "s.parquet", table, correct=tmp_path / "mine.csv", resamples=20)
    written = pq.read_table(tmp_path / "evaluation.parquet")
    assert written["id"].to_pylist() == [f"i{k}" for k in range(0, 500, 2)]
    assert written["correct"].to_pylist() == correct[::2].tolist() and written["predicted"].null_count == 250
    assert metrics["probe"] is None and metrics["compression"] is None and metrics["classes"] == []
    assert metrics["left_out"]["softmax"] == "no probe was fitted"
    assert metrics["sentences"][0] == (
        f"Of 250 rows with a known outcome {correct[::2].sum()} are correct ({correct[::2].mean():.1%}); no probe was "
        "fitted."
    )
    (tmp_path / "other.csv").write_text("id,correct\ni1,1\nj1,0\nj2,0\nj3,1\nj4,1\n")
    with pytest.raises(QScoreError, match=r"4 of 5 ids \('j1', 'j2', 'j3', ...\) are not in the score table"):
        evaluate_scores(tmp_path / "s.parquet", table, correct=tmp_path / "other.csv", overwrite=True)


def test_outcomes_may_name_invalid_rows_and_labels_make_no_probe_of_the_rows_under_test(tmp_path, rng):
    H, labels = planted(rng, n=300)
    H[7] = np.nan
    table = write_table(tmp_path / "e.parquet", H, labels)
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    (tmp_path / "mine.csv").write_text("id,correct\n" + "".join(f"i{k},{k % 2}\n" for k in range(300)))
    metrics = evaluate_scores(tmp_path / "s.parquet", table, correct=tmp_path / "mine.csv", resamples=5)
    assert metrics["n"] == 299 and metrics["class_mean"]["q_score"]
    assert metrics["compression"] is None
    assert [sentence for sentence in metrics["sentences"] if "compressed" in sentence] == [
        "How far the representation can be compressed was not measured: it needs labelled training embeddings."
    ]


def test_a_row_is_not_its_own_neighbour_where_the_rows_under_test_are_the_reference(tmp_path, rng):
    H, _ = planted(rng, n=60)
    table = write_table(tmp_path / "e.parquet", H)
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    (tmp_path / "mine.csv").write_text("id,correct\n" + "".join(f"i{k},{k % 2}\n" for k in range(60)))
    evaluate_scores(tmp_path / "s.parquet", table, correct=tmp_path / "mine.csv", resamples=5)
    Z = H.astype(np.float32) / np.linalg.norm(H.astype(np.float32), axis=1, keepdims=True)
    similarity = Z @ Z.T
    np.fill_diagonal(similarity, -1)
    expected = np.sort(similarity, axis=1)[:, -20:].mean(axis=1)
    np.testing.assert_allclose(pq.read_table(tmp_path / "evaluation.parquet")["knn_similarity"], expected, rtol=1e-5)


def test_views_are_matched_by_id_and_a_row_without_any_leaves_their_rivals_out(tmp_path, rng):
    H, labels = planted(rng, n=300)
    table = write_table(tmp_path / "e.parquet", H, labels)
    score(table, tmp_path / "s.parquet", epsilon=2.0)
    noisy = np.repeat(H, 2, axis=0) * rng.uniform(0.5, 2.0, size=(600, 1)) + rng.normal(0, 0.01, (600, 200))
    ids = [f"i{k}" for k in range(300) for _ in range(2)]
    columns = {"id": pa.array(ids), "view": pa.array(np.tile(np.array([1, 2], np.int8), 300))}
    write_shard(tmp_path / "v.parquet", noisy.astype(np.float32), columns, {})
    metrics = evaluate_scores(tmp_path / "s.parquet", table, view_embeddings=tmp_path / "v.parquet", resamples=5)
    assert metrics["left_out"] == {}
    written = pq.read_table(tmp_path / "evaluation.parquet")
    rows = [int(key[1:]) for key in written["id"].to_pylist()]
    V = noisy.astype(np.float32).reshape(300, 2, 200)[rows]
    own = H.astype(np.float32)[rows]
    norms = np.linalg.norm(V, axis=2) * np.linalg.norm(own, axis=1)[:, None]
    expected = (np.einsum("nkr,nr->nk", V, own) / norms).mean(axis=1)
    np.testing.assert_allclose(written["augmentation_cosine"], expected, rtol=1e-5)
    write_shard(tmp_path / "v.parquet", noisy[:-2].astype(np.float32), {k: c[:-2] for k, c in columns.items()}, {})
    gone = evaluate_scores(
        tmp_path / "s.parquet", table, view_embeddings=tmp_path / "v.parquet", resamples=5, overwrite=True
    )
    if "i299" in written["id"].to_pylist():
        assert gone["left_out"]["augmentation_cosine"].startswith("1 of 60 rows lack views, or some of them, in ")
        assert any(s.startswith("Neighbourhood consistency is left out: 1 of 60 rows lack") for s in gone["sentences"])
    else:
        assert gone["left_out"] == {}


def test_duplicated_rows_are_counted(tmp_path, rng):
    H, labels = planted(rng, n=500)
    train = write_table(tmp_path / "t.parquet", H[:400], labels[:400], "t")
    again = np.concatenate([H[400:], H[:7], H[400:403]])
    test = write_table(tmp_path / "e.parquet", again, np.concatenate([labels[400:], labels[:7], labels[400:403]]))
    score(test, tmp_path / "s.parquet", epsilon=2.0)
    metrics = evaluate_scores(tmp_path / "s.parquet", test, train, resamples=5)
    assert metrics["n_duplicates"] == {"train": 7, "test": 3}
    assert any(s.startswith("7 rows under test equal a training row") for s in metrics["sentences"])
    assert any(s.startswith("3 rows under test equal another one") for s in metrics["sentences"])


def test_classes_that_no_training_row_has_are_named(tmp_path, rng):
    H, labels = planted(rng, n=600)
    train = write_table(tmp_path / "t.parquet", H[:400][labels[:400] != 3], labels[:400][labels[:400] != 3], "t")
    test = write_table(tmp_path / "e.parquet", H[400:], labels[400:])
    score(test, tmp_path / "s.parquet", epsilon=2.0)
    metrics = evaluate_scores(tmp_path / "s.parquet", test, train, resamples=5)
    assert metrics["probe"]["unseen_classes"] == ["3"]
    assert any("1 of the classes under test (3) cannot be learned" in sentence for sentence in metrics["sentences"])


def test_a_constant_score_is_at_chance(tmp_path, rng):
    H, labels = planted(rng, n=600)
    H[:, 150:] = 0.0
    H[:, 199] = 50.0  # the highest value of every row
    metrics = evaluated(tmp_path, H, labels, resamples=5)
    assert metrics["scores"]["max_activation"]["auroc"] == {"value": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled": 5}, "expected labelled >= 10 and error_rate between 0 and 1, got 5 and None"),
        ({"error_rate": 1.5}, "expected labelled >= 10 and error_rate between 0 and 1, got 500 and 1.5"),
        ({"resamples": 0}, "expected resamples >= 1 and seed >= 0, got 0 and 0"),
        ({"probe": "logistics"}, "probe 'logistics': expected one of logistic, knn, sgd; did you mean 'logistic'"),
    ],
)
def test_arguments_out_of_range(tmp_path, rng, options, message):
    with pytest.raises(QScoreError, match=message):
        evaluated(tmp_path, *planted(rng, n=200), **options)


def test_training_rows_too_large_for_memory_are_mapped_with_the_same_results(tmp_path, rng, monkeypatch):
    H, labels = planted(rng, n=500)
    train = write_table(tmp_path / "t.parquet", H[:400], labels[:400], "t")
    test = write_table(tmp_path / "e.parquet", H[400:], labels[400:])
    score(test, tmp_path / "s.parquet", epsilon=2.0)
    held = evaluate_scores(tmp_path / "s.parquet", test, train, resamples=5, overwrite=True)
    monkeypatch.setattr("qscore.evaluate.probes.rows.HELD_IN_MEMORY", 0)
    opened = []
    true_open = np.lib.format.open_memmap
    monkeypatch.setattr(np.lib.format, "open_memmap", lambda *a, **k: opened.append(a) or true_open(*a, **k))
    assert evaluate_scores(tmp_path / "s.parquet", test, train, resamples=5, overwrite=True) == held
    assert len(opened) == 1
