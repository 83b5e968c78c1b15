import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qscore
from qscore import QScoreError
from qscore.explain.material import gather
from qscore.images import open_images, subset
from qscore.tables import with_record


@pytest.fixture
def folder(colours, tmp_path):
    """A copy, to be changed."""
    shutil.copytree(colours[0], tmp_path / "copy")
    return tmp_path / "copy"


def scores(folder):
    return folder / "run" / "scores.parquet"


def refusal(folder, **options):
    with pytest.raises(QScoreError) as caught:
        gather(options.pop("images", folder / "images"), scores(folder), **options)
    return str(caught.value).replace(str(folder), "...")


def change(path, function):
    """Rewrite a table."""
    table = pq.read_table(path)
    changed = function(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def test_rows_stand_in_the_images_order(folder):
    change(scores(folder), lambda table: table.take(np.random.default_rng(0).permutation(len(table))))
    found = gather(folder / "images", scores(folder), masks=folder / "masks")
    names = [f"{i:03d}.png" for i in range(60)]
    assert found.rows.column("id").to_pylist() == names == [found.images.record(i).id for i in range(60)]
    assert found.masked.tolist() == found.of_source.tolist() == list(range(60))
    assert (found.n_unscored, found.n_invalid, found.correct.size) == (0, 0, 60) and np.isnan(found.correct).all()


def test_images_without_a_row_and_invalid_rows_are_left_out(folder):
    def without(table):
        valid = np.ones(57, bool)
        valid[5] = False
        table = table.slice(3)
        return table.set_column(table.schema.get_field_index("valid"), "valid", pa.array(valid))

    change(scores(folder), without)
    found = gather(folder / "images", scores(folder), masks=folder / "masks")
    kept = [i for i in range(3, 60) if i != 8]
    assert found.of_source.tolist() == kept and len(found.images) == 56
    assert [found.images.record(i).id for i in (0, 5)] == ["003.png", "009.png"]
    assert found.masked.tolist() == list(range(56)) and (found.n_unscored, found.n_invalid) == (3, 1)
    said = [sentence.replace(str(folder), "...") for sentence in found.sentences[:2]]
    assert said == [
        "3 of 60 images have no row in .../run/scores.parquet, the first is '000.png': left out.",
        "1 images whose rows are not valid were left out.",
    ]


def test_rows_without_an_image_do_not_matter(folder):
    part = subset(open_images(folder / "images"), [4, 2])
    found = gather(part, scores(folder))
    assert found.rows.column("id").to_pylist() == ["004.png", "002.png"] and found.masks is None
    assert found.masked.size == 0


def test_other_images_are_refused(folder):
    assert refusal(folder, images="digits") == (
        "digits: none of its 1,797 images has a row in .../run/scores.parquet; rows are matched by id, the first "
        "image is 'digits-0000', the first row '000.png'"
    )


def test_ids_that_come_twice_are_refused(folder):
    change(scores(folder), lambda table: pa.concat_tables([table, table.slice(2, 2)]))
    assert refusal(folder) == (
        ".../run/scores.parquet: 2 ids come more than once; rows are matched by id, so each must have its own"
    )


def test_no_valid_row(folder):
    change(scores(folder), lambda table: table.set_column(table.column_names.index("valid"), "valid", [[False] * 60]))
    assert refusal(folder) == ".../run/scores.parquet: none of the images has a valid row, all hold NaN or infinity"


def test_outcomes_are_matched_by_id(folder, evaluation):
    found = gather(folder / "images", scores(folder), evaluation=evaluation)
    assert np.isnan(found.correct[0]) and found.correct[1:].tolist() == [i % 2 == 0 for i in range(1, 60)]
    assert found.rows.column("predicted").to_pylist() == [None, *["x"] * 59]
    said = f"1 of 60 images are not in {evaluation}: whether they are correct is not known."
    assert found.sentences == (said,)


def test_the_evaluation_beside_the_scores_is_found(folder, evaluation):
    shutil.copy(evaluation, folder / "run" / "evaluation.parquet")
    assert np.isfinite(gather(folder / "images", scores(folder)).correct).sum() == 59


def of_other_scores(table):
    return table.replace_schema_metadata(with_record(table.schema, {"scores_sha256": "0" * 64}).metadata)


def of_other_rows(table):
    return table.set_column(0, "id", [[f"x{i}" for i in range(len(table))]])


def without_outcomes(table):
    return table.drop_columns(["correct"])


def as_text(table):
    return table.set_column(table.column_names.index("correct"), "correct", [["yes"] * len(table)])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (of_other_scores, "was made of another score table than .../run/scores.parquet; run qscore evaluate again"),
        (of_other_rows, ": none of the 60 scored images is in it; rows are matched by id"),
        (without_outcomes, ": expected an evaluation table, with id and correct, as qscore evaluate writes it"),
        (as_text, ": expected an evaluation table, with id and correct, as qscore evaluate writes it"),
    ],
)
def test_an_evaluation_that_does_not_belong(function, message, folder, evaluation):
    path = folder / "other.parquet"
    pq.write_table(function(pq.read_table(evaluation)), path)
    said = refusal(folder, evaluation=path)
    assert said.removeprefix(".../other.parquet").lstrip() == message.lstrip() and said.startswith(".../other.parquet")
    shutil.copy(path, folder / "run" / "evaluation.parquet")  # not asked for: it is left aside, and that is said
    found = gather(folder / "images", scores(folder))
    assert np.isnan(found.correct).all()
    assert found.sentences[0].startswith("Which rows are correct is not known: ")


def test_an_evaluation_that_cannot_be_read(folder):
    assert refusal(folder, evaluation=folder / "none.parquet") == ".../none.parquet: no such file"
    (folder / "torn.parquet").write_bytes(b"PAR1")
    assert refusal(folder, evaluation=folder / "torn.parquet").startswith("cannot read .../torn.parquet: ")


def test_the_evaluation_that_qscore_writes(folder, rng):
    """By a probe, with its own record of the score table."""
    ids = pq.read_table(scores(folder), columns=["id"]).column("id").to_pylist()
    outcomes = "\n".join(f"{id},{int(i % 3 > 0)}" for i, id in enumerate(ids))
    (folder / "correct.csv").write_text(f"id,correct\n{outcomes}\n")
    qscore.evaluate_scores(
        scores(folder), folder / "run" / "embeddings", correct=folder / "correct.csv", labelled=10, resamples=5
    )
    found = gather(folder / "images", scores(folder))
    assert found.correct.tolist() == [float(i % 3 > 0) for i in range(60)] and found.sentences == ()
