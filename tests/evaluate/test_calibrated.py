import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import qscore
from qscore import QScoreError, calibrate_scores
from qscore.evaluate.calibrated import HeldOut, read_outcomes
from qscore.evaluate.calibration import calibrate
from qscore.evaluate.threshold import choose_threshold
from qscore.tables import read_record


def write_scores(folder, values, name="scores.parquet", **columns):
    ids = [f"i{k}" for k in range(len(values))]
    pq.write_table(pa.table({"id": ids, "q_score": values, **columns}), folder / name)
    return folder / name


def write_labels(folder, rows, correct, name="labels.csv"):
    lines = [f"i{row},{text}" for row, text in zip(rows, correct, strict=True)]
    (folder / name).write_text("\n".join(["id,correct", *lines]) + "\n")
    return folder / name


@pytest.fixture
def some(tmp_path, rng):
    """500 scored rows, 80 of them labelled in another order; the score says how likely a row is correct."""
    q = rng.random(500).astype(np.float32)
    rows = rng.choice(500, 80, replace=False)
    correct = rng.random(80) < q[rows]
    return write_scores(tmp_path, q), write_labels(tmp_path, rows, correct), q, rows, correct


def test_map_and_threshold_are_those_of_the_functions(tmp_path, some):
    scores, labels, q, rows, correct = some
    out = tmp_path / "c.parquet"
    found = calibrate_scores(scores, labels, out, error_rate=0.3, delta=0.2, seed=3)
    order = np.argsort(rows)
    rest = np.delete(np.arange(500), rows)
    assert found.calibration == calibrate(q[rows[order]], correct[order], seed=3)
    assert found.threshold == choose_threshold(q[rows], correct, q[rest], 0.3, delta=0.2)
    assert found.threshold.n_unlabelled == 420 and found.held_out is None and found.notes == ()
    table = pq.read_table(out)
    assert table.column_names == ["id", "score", "p_wrong", "accepted", "labelled"]
    assert table["id"].to_pylist() == [f"i{k}" for k in range(500)]
    np.testing.assert_array_equal(table["score"].to_numpy(), q)
    np.testing.assert_allclose(table["p_wrong"].to_numpy(), found.calibration.probability(q), atol=1e-7)
    np.testing.assert_array_equal(table["accepted"].to_numpy(), found.threshold.accept(q))
    assert sorted(np.flatnonzero(table["labelled"].to_numpy())) == sorted(rows)
    assert found.n_accepted == table["accepted"].to_numpy().sum() > 0
    assert found.sentences() == [found.calibration.sentence, found.threshold.sentence]


def test_the_metadata_is_enough_to_score_other_rows(tmp_path, some):
    scores, labels, q, _, _ = some
    found = calibrate_scores(scores, labels, tmp_path / "c.parquet", error_rate=0.3)
    record = read_record(pq.read_schema(tmp_path / "c.parquet"))
    assert (record["kind"], record["score"], record["n"], record["seed"]) == ("calibration", "q_score", 500, 0)
    assert record["threshold"]["threshold"] == found.threshold.threshold and record["threshold"]["delta"] == 0.1
    mapped = np.interp(q, record["calibration"]["knots"], record["calibration"]["values"])
    np.testing.assert_allclose(mapped, found.calibration.probability(q), atol=1e-12)
    assert record["sentences"] == found.sentences() and "out" not in record
    assert len(record["scores_sha256"]) == len(record["labels_sha256"]) == 64


@pytest.mark.parametrize("kind", ["csv", "bool", "int", "float", "text", "category"])
def test_outcomes_are_read_however_they_are_written(tmp_path, kind):
    truth = {"0012": True, "b": False, "c": True}
    if kind == "csv":
        text = '\ufeffnote,id,correct\n"two\nlines",0012,True\n,b,0\n,skipped,\n,c, TRUE \n,,\n,also,nan\n'
        text += ",too,1.0\n,off,0.0\n"
        (tmp_path / "l.csv").write_text(text, encoding="utf-8")
        assert read_outcomes(tmp_path / "l.csv") == {**truth, "too": True, "off": False}
        return
    ids, values = pa.array(["0012", "b", "none", "c"]), [True, False, None, True]
    columns = {
        "bool": pa.array(values),
        "int": pa.array([1, 0, None, 1], pa.int8()),
        "float": pa.array([1.0, 0.0, float("nan"), 1.0]),
        "text": pa.array(["1", "False", "", "true"]),
        "category": pa.array(["1", "0", None, "1"]).dictionary_encode(),
    }
    pq.write_table(pa.table({"id": ids, "right": columns[kind]}), tmp_path / "l.parquet")
    assert read_outcomes(tmp_path / "l.parquet", "right") == truth


def test_notes_of_several_lines_may_lie_anywhere_in_a_long_sheet(tmp_path):
    rows = "".join(f'i{k},"a note\n\nof three lines, with much to say about row {k}",{k % 2}\n' for k in range(30_000))
    (tmp_path / "l.csv").write_text("id,note,correct\n" + rows)
    assert read_outcomes(tmp_path / "l.csv") == {f"i{k}": k % 2 == 1 for k in range(30_000)}


def test_integer_ids_match_those_of_score_tables_which_are_strings(tmp_path, rng):
    ids = [str(k) for k in range(100)]
    pq.write_table(pa.table({"id": ids, "q_score": rng.random(100)}), tmp_path / "s.parquet")
    pq.write_table(pa.table({"id": np.arange(40), "correct": rng.random(40) < 0.7}), tmp_path / "l.parquet")
    assert calibrate_scores(tmp_path / "s.parquet", tmp_path / "l.parquet", tmp_path / "c.parquet").n_labelled == 40


def test_a_number_of_labelled_rows_is_drawn_and_the_others_check_the_guarantee(tmp_path, rng):
    q = rng.random(2000)
    correct = rng.random(2000) < q
    scores = write_scores(tmp_path, q, correct=correct)  # an evaluation table is both
    found = calibrate_scores(scores, scores, tmp_path / "c.parquet", labelled=400, error_rate=0.2, seed=5)
    table = pq.read_table(tmp_path / "c.parquet")
    used, accepted = (table[name].to_numpy() for name in ("labelled", "accepted"))
    assert used.sum() == found.n_labelled == found.calibration.n == 400
    assert found.threshold == choose_threshold(q[used], correct[used], q[~used], 0.2, delta=0.1)
    assert found.held_out == HeldOut(1600, (accepted & ~used).sum(), (accepted & ~used & ~correct).sum(), 0.2)
    assert found.sentences()[-1] == found.held_out.sentence
    other = calibrate_scores(scores, scores, tmp_path / "d.parquet", labelled=400, error_rate=0.2, seed=6)
    assert (pq.read_table(tmp_path / "d.parquet")["labelled"].to_numpy() != used).sum() > 400
    assert other.held_out != found.held_out
    again = calibrate_scores(
        scores, scores, tmp_path / "c.parquet", labelled=400, error_rate=0.2, seed=5, overwrite=True
    )
    assert again == found and pq.read_table(tmp_path / "c.parquet").equals(table)


def test_what_the_held_out_rows_show_in_a_sentence():
    assert HeldOut(1000, 250, 10, 0.05).sentence == (
        "Of the 1,000 labelled rows held out 250 are accepted, a coverage of 25.0%, and 10 of those are wrong: 4.0% "
        "(95 % interval 1.9% to 7.2%), within the 5.0% wanted."
    )
    assert HeldOut(1000, 250, 20, 0.05).sentence.endswith(", more than the 5.0% wanted.")
    assert HeldOut(7, 0, 0, 0.05).sentence == "Of the 7 labelled rows held out none is accepted."


def test_rows_without_a_finite_score_have_no_probability_and_are_never_accepted(tmp_path, rng):
    q = rng.random(300)
    q[[0, 1, 200]] = [np.nan, np.inf, -np.inf]
    column = pa.array(q, mask=np.arange(300) == 299)
    labels = write_labels(tmp_path, range(100), np.ones(100, dtype=int))
    found = calibrate_scores(write_scores(tmp_path, column), labels, tmp_path / "c.parquet", error_rate=0.1)
    table = pq.read_table(tmp_path / "c.parquet")
    assert np.flatnonzero(table["p_wrong"].is_null().to_numpy()).tolist() == [0, 1, 200, 299]
    assert np.flatnonzero(~table["accepted"].to_numpy()).tolist()[:2] == [0, 1]
    assert not table["accepted"].to_numpy()[[200, 299]].any()
    assert (found.n_labelled, found.calibration.n, found.threshold.n_invalid) == (100, 98, 4)
    drawn = calibrate_scores(tmp_path / "scores.parquet", labels, tmp_path / "d.parquet", labelled=90, error_rate=0.1)
    assert drawn.calibration.n == 90 and drawn.held_out.n == 8


@pytest.mark.parametrize("kind", [pa.float16(), pa.int32(), pa.float64()])
def test_any_column_of_numbers_is_a_score(tmp_path, rng, kind):
    values = pa.array(rng.integers(0, 50, 200).astype(np.float64)).cast(kind)
    labels = write_labels(tmp_path, range(60), [int(k % 3 > 0) for k in range(60)])
    scores = write_scores(tmp_path, rng.random(200), n_active=values)
    found = calibrate_scores(scores, labels, tmp_path / "c.parquet", score="n_active")
    assert found.score == "n_active" and pq.read_schema(tmp_path / "c.parquet").field("score").type == kind


def test_score_and_evaluation_tables_as_they_come(tmp_path, relu_table, rng):
    np.save(tmp_path / "e.npy", relu_table)
    qscore.score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    correct = pa.array(rng.random(200) < 0.8, mask=np.arange(200) >= 120)
    pq.write_table(pa.table({"id": [str(k) for k in range(200)], "correct": correct}), tmp_path / "evaluation.parquet")
    found = calibrate_scores(
        tmp_path / "s.parquet", tmp_path / "evaluation.parquet", tmp_path / "c.parquet", error_rate=0.5
    )
    assert (found.n, found.n_labelled) == (200, 120)


@pytest.mark.parametrize(("outcome", "p"), [(1, 0.0), (0, 1.0)])
def test_one_outcome_only_is_said_to_tell_little(tmp_path, rng, outcome, p):
    labels = write_labels(tmp_path, range(40), [outcome] * 40)
    found = calibrate_scores(write_scores(tmp_path, rng.random(90)), labels, tmp_path / "c.parquet", error_rate=0.2)
    assert set(pq.read_table(tmp_path / "c.parquet")["p_wrong"].to_pylist()) == {p}
    (note,) = found.notes
    assert note.startswith(
        f"All 40 labelled rows are {'correct' if outcome else 'wrong'}: p_wrong is {p:.0f} everywhere"
    )
    assert ("at most 8.8% of all rows" if outcome else "at least 91.2% of all rows") in note
    assert (found.threshold.threshold is not None) == bool(outcome)


def test_a_constant_score_is_said_to_sort_nothing(tmp_path):
    labels = write_labels(tmp_path, range(40), [int(k % 4 > 0) for k in range(40)])
    found = calibrate_scores(write_scores(tmp_path, np.zeros(90)), labels, tmp_path / "c.parquet", error_rate=0.5)
    assert found.notes == ("All labelled rows have the same q_score: p_wrong is the share of wrong ones everywhere.",)
    assert set(pq.read_table(tmp_path / "c.parquet")["p_wrong"].to_pylist()) == {0.25}
    assert found.n_accepted == 90 and found.threshold.coverage == 1.0


def test_a_score_of_the_wrong_sign_is_noticed_and_one_that_says_nothing_is_not(tmp_path, rng):
    distance = rng.random(400)
    labels = write_labels(tmp_path, range(100), (rng.random(100) > distance[:100]).astype(int))
    found = calibrate_scores(write_scores(tmp_path, distance), labels, tmp_path / "c.parquet")
    assert found.notes == (
        "High values of q_score go with wrong rows here, and the map can only fall: turn the score's sign.",
    )
    noticed = 0
    for seed in range(40):
        column = np.random.default_rng(seed).random(400)
        found = calibrate_scores(write_scores(tmp_path, column), labels, tmp_path / "c.parquet", overwrite=True)
        noticed += bool(found.notes)
    assert noticed <= 4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_labels_changes_nothing(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("order"), np.random.default_rng(seed)
    q, rows = np.round(rng.random(120), 1), rng.choice(120, 50, replace=False)
    correct = (rng.random(50) < q[rows]).astype(int)
    scores, order = write_scores(folder, q), rng.permutation(50)
    one = calibrate_scores(
        scores, write_labels(folder, rows, correct), folder / "a.parquet", error_rate=0.3, labelled=30
    )
    labels = write_labels(folder, rows[order], correct[order], "shuffled.csv")
    two = calibrate_scores(scores, labels, folder / "b.parquet", error_rate=0.3, labelled=30)
    assert (one.calibration, one.threshold, one.held_out) == (two.calibration, two.threshold, two.held_out)
    assert pq.read_table(folder / "a.parquet").equals(pq.read_table(folder / "b.parquet"))


def test_the_guarantee_holds_from_the_files_on_as_often_as_promised(tmp_path):
    """Half of the rows tie at 0; above, P(wrong | s >= t) = 0.21 - 0.2 t: 0.2 is only to be had from t = 0.05 on."""
    violations = guaranteed = checked = 0
    seeds = 100
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        q = np.maximum(0.0, 2 * rng.random(600) - 1)
        correct = rng.random(600) >= np.where(q > 0, 0.41 - 0.4 * q, 0.3)
        rows = rng.choice(600, 300, replace=False)
        labels = write_labels(tmp_path, rows, correct[rows].astype(int))
        found = calibrate_scores(
            write_scores(tmp_path, q),
            labels,
            tmp_path / "c.parquet",
            error_rate=0.2,
            delta=0.1,
            labelled=250,
            seed=seed,
            overwrite=True,
        )
        assert (found.threshold.n, found.threshold.n_unlabelled, found.held_out.n) == (250, 350, 50)
        if found.threshold.threshold is not None:
            guaranteed += 1
            t = found.threshold.threshold
            violations += ((0.21 - 0.2 * t) if t > 0 else 0.255) > 0.2
            checked += found.held_out.n_accepted
    assert violations <= binom.ppf(0.999, seeds, 0.1)
    assert guaranteed > seeds / 4 and checked > 0


def bad(folder, **changes):
    """Return scores and labels, good but for the changes."""
    scores = {"id": [f"i{k}" for k in range(60)], "q_score": [k / 60 for k in range(60)]} | changes.get("scores", {})
    labels = {"id": [f"i{k}" for k in range(30)], "correct": [k % 3 > 0 for k in range(30)]} | changes.get("labels", {})
    pq.write_table(pa.table(scores), folder / "s.parquet")
    pq.write_table(pa.table(labels), folder / "l.parquet")
    return folder / "s.parquet", folder / "l.parquet"


IDS = [f"i{k}" for k in range(30)]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"labels": {"id": ["x", "y", *IDS[2:]]}},
            {},
            r"2 of 30 labelled ids are not in \S+s.parquet, the first is 'x'",
        ),
        ({"labels": {"id": ["i1", *IDS[1:]]}}, {}, r"l.parquet: 1 ids come more than once, the first is 'i1'"),
        ({"scores": {"id": ["i1"] * 60}}, {}, r"s.parquet: 1 ids come more than once, the first is 'i1'"),
        ({"labels": {"id": [None, *IDS[1:]]}}, {}, r"l.parquet: 1 of 30 rows have no id"),
        (
            {"labels": {"correct": pa.nulls(30, pa.bool_())}},
            {},
            "l.parquet: no row is labelled, the column 'correct' is empty",
        ),
        (
            {"labels": {"correct": [1, 2] * 15}},
            {},
            "expected booleans, or 0 and 1, in the column 'correct', got '2' in row 2",
        ),
        ({"labels": {"correct": [[True]] * 30}}, {}, "l.parquet: correct: expected one value per row, got list"),
        ({}, {"correct_column": "corect"}, "expected one column 'corect', got 'id', 'correct'; did you mean 'correct'"),
        ({"labels": {"correct": [True] * 9 + [None] * 21}}, {}, "at least 10 labelled rows with a finite score, got 9"),
        ({"scores": {"q_score": [np.nan] * 60}}, {}, "at least 10 labelled rows with a finite score, got 0"),
        (
            {},
            {"score": "q_scor"},
            "s.parquet: expected a column of numbers 'q_scor', got q_score; did you mean 'q_score'",
        ),
        ({"scores": {"q_score": ["a"] * 60}}, {}, "expected a column of numbers 'q_score', got none"),
        (
            {"scores": {"id": IDS, "q_score": [0.1 * k for k in range(30)]}},
            {},
            r"all 30 rows of \S+ are labelled.*--labelled K",
        ),
        ({}, {"labelled": 30}, "labelled: expected fewer than the 30 labelled rows with a finite score.*got 30"),
        ({}, {"labelled": 0}, "labelled: expected fewer than the 30 .* got 0"),
        ({}, {"labelled": 9}, "expected at least 10 labelled rows with a finite score, got 9"),
        ({}, {"error_rate": 5.0}, "error_rate: expected a share between 0 and 1, got 5.0"),
        ({}, {"delta": 0.0}, "delta: expected a share between 0 and 1, got 0.0"),
        ({}, {"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, changes, options, message):
    with pytest.raises(QScoreError, match=message):
        calibrate_scores(*bad(tmp_path, **changes), tmp_path / "c.parquet", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.parquet", "s.parquet"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"", "cannot read .*l.csv"),
        ("l.csv", b"name;correct\na;1\n", "expected one column 'id', got 'name;correct'"),
        ("l.csv", b"id,correct,correct\na,1,1\n", "expected one column 'correct', got 'id', 'correct', 'correct'"),
        ("l.csv", b"id,correct\na,yes\n", "got 'yes' in row 1; leave rows empty that are not labelled"),
        ("l.csv", b"id,correct\n", "no row is labelled"),
        ("l.parquet", b"PAR1 no more", "cannot read .*l.parquet"),
        ("l.txt", b"id,correct\na,1\n", "expected a file of labels that ends in .csv or .parquet"),
        (None, b"", "l.csv: no such file"),
    ],
)
def test_files_of_labels_that_cannot_be_read(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(QScoreError, match=message):
        read_outcomes(tmp_path / (name or "l.csv"))


def test_scores_that_cannot_be_read_and_outputs_that_may_not_be_written(tmp_path):
    scores, labels = bad(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    for path, message in (("x.parquet", "cannot read .*x.parquet"), ("y.parquet", "y.parquet: no such file")):
        with pytest.raises(QScoreError, match=message):
            calibrate_scores(tmp_path / path, labels, tmp_path / "c.parquet")
    for out, message in (
        ("l.parquet", "is an input"),
        ("x.parquet", "exists; choose another name"),
        ("c.csv", "expected a name that ends in .parquet"),
    ):
        with pytest.raises(QScoreError, match=message):
            calibrate_scores(scores, labels, tmp_path / out, overwrite=out == "l.parquet")
    pq.write_table(pa.table({"q_score": [0.5]}), tmp_path / "n.parquet")
    with pytest.raises(QScoreError, match="n.parquet: expected one column 'id', got 'q_score'"):
        calibrate_scores(tmp_path / "n.parquet", labels, tmp_path / "c.parquet")


def test_the_record_is_json_even_where_nothing_can_be_guaranteed(tmp_path):
    scores, labels = bad(tmp_path)
    found = calibrate_scores(scores, labels, tmp_path / "c.parquet", error_rate=0.01)
    assert found.threshold.threshold is None and found.n_accepted == 0
    text = pq.read_schema(tmp_path / "c.parquet").metadata[b"qscore"]
    assert json.loads(text, parse_constant=pytest.fail)["threshold"]["threshold"] is None
