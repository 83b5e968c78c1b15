import pytest
from tiny_training import crash

from qscore.study.reproduce.measuring import claim_folder


def test_a_folder_that_was_half_removed_is_nobody_s(tmp_path, monkeypatch):
    folder, origin = tmp_path / "work", {"encoder": "a"}
    (claim_folder(folder, origin) / "summary.json").write_text("{}")
    assert (claim_folder(folder, origin) / "summary.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("qscore.study.reproduce.measuring.shutil.rmtree", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            claim_folder(folder, {"encoder": "b"})
    assert not (claim_folder(folder, origin) / "summary.json").exists()
