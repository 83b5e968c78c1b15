"""The tables that every step reads and writes: their schemas, readers and writers.

Three kinds, each with a JSON record under the metadata key ``qscore`` that carries the schema's version:

embedding table   ``id``, ``embedding``, optional ``label``, ``path``, ``view``; Parquet (a file, or a directory of
                  shards), Arrow, or a bare matrix (``.npy``, ``.npz``, ``.pt``, ``.safetensors``), local or in a store
score table       one row per embedding: Q and what it is made of
feature table     one row per feature: its activation rate, and whether it is discriminative
"""

from qscore._stores import StoreError
from qscore.tables.embeddings import EmbeddingBatch, EmbeddingTable, open_embeddings, write_shard
from qscore.tables.records import SCHEMA_VERSION, read_record, with_record
from qscore.tables.results import iter_scores, read_features, read_scores, score_schema, write_features, write_rows
from qscore.tables.vectors import vectors

__all__ = [
    "SCHEMA_VERSION",
    "EmbeddingBatch",
    "EmbeddingTable",
    "StoreError",
    "iter_scores",
    "open_embeddings",
    "read_features",
    "read_record",
    "read_scores",
    "score_schema",
    "vectors",
    "with_record",
    "write_features",
    "write_rows",
    "write_shard",
]
