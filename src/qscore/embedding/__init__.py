"""Images and an encoder in, an embedding table out, shard by shard; a killed run resumes at the last whole shard."""

from qscore.embedding.network import pick_device
from qscore.embedding.processes import launched
from qscore.embedding.run import embed
from qscore.embedding.shards import Skipped, read_skipped, skipped_path, views_path

__all__ = ["Skipped", "embed", "launched", "pick_device", "read_skipped", "skipped_path", "views_path"]
