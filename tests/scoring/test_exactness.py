"""The table does not depend on how the rows came; Q agrees with arithmetic of many more digits."""

import itertools
import json
from fractions import Fraction

import mpmath
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qscore import core, scan, score
from qscore.core import TIE_MARGIN
from qscore.scoring import features_path
from qscore.tables import embeddings, formats, read_scores, write_shard


def content(out):
    """Everything in both tables, bit for bit, except what names the file."""
    rows, record = read_scores(out)
    features = pq.read_table(features_path(out))
    arrays = [repr(column.to_pylist()) for column in rows.sort_by("id").columns]
    return arrays, features.to_pylist(), json.dumps({**record, "features_sha256": None}, sort_keys=True)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    H = rng.gamma(0.3, size=(90, 70)).astype(np.float32) * (rng.random((90, 70)) < 0.5)
    H[4], H[7, 3] = 0.1, np.nan
    return {"plain": H, "signed": H - np.float32(0.2)}


@pytest.fixture(scope="module")
def one_file(rows, tmp_path_factory):
    """The tables of one file, one thread, one batch."""
    found = {}
    for name, H in rows.items():
        folder = tmp_path_factory.mktemp(name)
        write_shard(folder / "e.parquet", H, {"id": pa.array(f"{i:03d}" for i in range(90))}, {})
        score(folder / "e.parquet", folder / "s.parquet", epsilon=2.0, threads=1)
        found[name] = content(folder / "s.parquet")
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["plain", "signed"]),
    cuts=st.sets(st.integers(1, 89), max_size=5),
    order=st.integers(0, 1000),
    threads=st.sampled_from([1, 2, 8]),
    batch=st.integers(1, 100),
    segment=st.integers(1, 4),
    gathered=st.integers(1, 8),
    groups=st.integers(1, 50),
)
def test_tables_do_not_depend_on_chunks_threads_shards_or_their_order(
    rows, one_file, tmp_path_factory, name, cuts, order, threads, batch, segment, gathered, groups
):
    folder = tmp_path_factory.mktemp("shards")
    H, ids = rows[name], [f"{i:03d}" for i in range(90)]
    bounds = [0, *sorted(cuts), 90]
    pieces = list(itertools.pairwise(bounds))
    np.random.default_rng(order).shuffle(pieces)
    (folder / "e").mkdir()
    for k, (start, stop) in enumerate(pieces):
        values = pa.array(H[start:stop].reshape(-1))
        part = pa.table({"id": ids[start:stop], "embedding": pa.FixedSizeListArray.from_arrays(values, 70)})
        pq.write_table(part, folder / "e" / f"{k}.parquet", row_group_size=groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BATCH_BYTES", batch * 70 * 4)
        patch.setattr(formats, "SEGMENT_BYTES", segment * batch * 70 * 4)
        patch.setattr(embeddings, "PART_BYTES", gathered * batch * 70 * 4)
        score(folder / "e", folder / "s.parquet", epsilon=2.0, threads=threads)
    for got, expected in zip(content(folder / "s.parquet"), one_file[name], strict=True):
        assert got == expected


def test_the_scaling_of_a_large_signed_table_does_not_depend_on_the_order(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("qscore.scoring.spill.SCALING_BYTES", 45 * 70 * 8)  # half of it
    H, ids = rows["signed"], np.array([f"{i:03d}" for i in range(90)])
    for name, order in {"a": np.arange(90), "b": np.random.default_rng(0).permutation(90)}.items():
        write_shard(tmp_path / name / "e.parquet", H[order], {"id": pa.array(ids[order])}, {})
        score(tmp_path / name / "e.parquet", tmp_path / f"{name}.parquet", epsilon=2.0)
    assert content(tmp_path / "a.parquet") == content(tmp_path / "b.parquet")
    score(tmp_path / "a" / "e.parquet", tmp_path / "whole.parquet", epsilon=2.0)
    monkeypatch.undo()
    score(tmp_path / "a" / "e.parquet", tmp_path / "exact.parquet", epsilon=2.0)
    assert content(tmp_path / "exact.parquet") != content(tmp_path / "whole.parquet")  # it was a sample


@pytest.mark.parametrize("extension", ["npy", "npz", "arrow", "pt", "safetensors"])
def test_every_format_gives_the_same_table(rows, tmp_path, extension):
    H = rows["plain"]
    np.save(tmp_path / "a.npy", H)
    path = tmp_path / f"e.{extension}"
    if extension == "npy":
        np.save(path, np.asfortranarray(H))
    elif extension == "npz":
        np.savez(path, H)
    elif extension == "arrow":
        table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(H.reshape(-1)), 70)})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    else:
        torch = pytest.importorskip("torch")
        if extension == "pt":
            torch.save(torch.from_numpy(H), path)
        else:
            from safetensors.torch import save_file

            save_file({"embedding": torch.from_numpy(H)}, path)
    for source, out in ((tmp_path / "a.npy", "a"), (path, "b")):
        score(source, tmp_path / f"{out}.parquet", epsilon=2.0)
    assert content(tmp_path / "a.parquet") == content(tmp_path / "b.parquet")


def precise(row, features, epsilon, two_sided):
    """Q of a row in rational arithmetic; only the square root is rounded, to 60 digits."""
    with mpmath.workdps(60):
        values = [Fraction(float(value)) for value in row]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        margin = 1 + mpmath.mpf(TIE_MARGIN)
        threshold = epsilon * mpmath.sqrt(mpmath.mpf(variance.numerator) / variance.denominator) * margin
        deviations = [(abs(v - mean) if two_sided else v - mean) for v in values]
        inside = [
            d for j, d in enumerate(deviations) if j in features and mpmath.mpf(d.numerator) / d.denominator > threshold
        ]
        return float(sum(inside, Fraction(0)) / len(inside)) if inside else 0.0


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-30, -10, 0, 10, 30])
def test_q_agrees_with_rational_arithmetic(rng, dtype, exponent, two_sided):
    H = rng.gamma(0.2, size=(12, 97)) * 10.0**exponent
    H[6:] += 10.0**exponent * 1000  # a mean far above the spread
    H = (H - 10.0**exponent * two_sided).astype(dtype)
    features = np.arange(0, 97, 2)
    found = scan(H, 1.5, two_sided=two_sided).q_score(features)
    expected = [precise(row, set(features.tolist()), 1.5, two_sided) for row in H]
    assert np.count_nonzero(expected) >= 10
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(core.q_score(H, features, 1.5, two_sided=two_sided), expected, rtol=1e-6)


@pytest.mark.parametrize("exponent", [-30, 30])
def test_the_command_reaches_the_same_digits(tmp_path, rng, exponent):
    H = (rng.gamma(0.2, size=(40, 97)) * 10.0**exponent).astype(np.float32)
    np.save(tmp_path / "e.npy", H)
    score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=1.5, signed=False)
    D = np.flatnonzero(pq.read_table(tmp_path / "s.features.parquet").column("discriminative").to_numpy())
    expected = [precise(row, set(D.tolist()), 1.5, False) for row in H]
    q = read_scores(tmp_path / "s.parquet")[0].column("q_score").to_numpy()
    np.testing.assert_allclose(q, expected, rtol=1e-6)


@pytest.mark.parametrize("r", [2, 3, 65_536])
def test_any_width(tmp_path, rng, r):
    H = rng.gamma(0.3, size=(6, r)).astype(np.float32)
    np.save(tmp_path / "e.npy", H)
    epsilon = 0.5 if r < 10 else 4.0
    score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=epsilon, lower=0.0, upper=1.0)
    rows, _ = read_scores(tmp_path / "s.parquet")
    D = core.discriminative_features(core.activation_counts(core.highly_activating(H, epsilon)), 0.0, 1.0)
    np.testing.assert_allclose(rows.column("q_score").to_numpy(), core.q_score(H, D, epsilon), rtol=1e-6)
