import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference.planted import colour_encoder, draw

import qscore


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Images of coloured squares, masks, embeddings and scores; the encoder's features see single colours."""
    folder = draw(tmp_path_factory.mktemp("colours"))
    encoder = colour_encoder()
    qscore.embed(folder / "images", encoder, folder / "run" / "embeddings", device="cpu", workers=0)
    qscore.score(folder / "run" / "embeddings", folder / "run" / "scores.parquet", epsilon=1.5)
    return folder, encoder


@pytest.fixture(scope="session")
def evaluation(colours):
    """An evaluation table of all images but the first: those with even numbers are correct."""
    folder, _ = colours
    ids = pq.read_table(folder / "run" / "scores.parquet", columns=["id"]).column("id").to_pylist()[1:]
    table = pa.table(
        {"id": ids, "predicted": ["x"] * len(ids), "correct": np.array([int(i[:3]) % 2 == 0 for i in ids])}
    )
    pq.write_table(table, folder / "evaluation.parquet")
    return folder / "evaluation.parquet"
