"""The JSON record that every table carries in its metadata."""

import json
from typing import Any

import pyarrow as pa

from qscore._validate import QScoreError

__all__ = ["SCHEMA_VERSION", "read_record", "with_record"]

SCHEMA_VERSION = 1


def with_record(schema: pa.Schema, record: dict[str, Any]) -> pa.Schema:
    """Return the schema with a JSON record under the metadata key ``qscore``, its version added."""
    text = json.dumps({"version": SCHEMA_VERSION, **record}, sort_keys=True)
    return schema.with_metadata({**(schema.metadata or {}), b"qscore": text.encode()})


def read_record(schema: pa.Schema) -> dict[str, Any]:
    """Return the JSON record of a schema, or an empty one where the file is not ours.

    Raises
    ------
    QScoreError
        If the record is damaged, or of a version this software does not know.
    """
    text = (schema.metadata or {}).get(b"qscore")
    if text is None:
        return {}
    try:
        record = json.loads(text)
        version = record["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise QScoreError("damaged metadata under the key 'qscore'") from error
    if version != SCHEMA_VERSION:
        raise QScoreError(f"schema version {version!r}; this software reads version {SCHEMA_VERSION}")
    return dict(record)
