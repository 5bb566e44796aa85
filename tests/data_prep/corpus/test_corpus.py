"""A corpus is published all or nothing."""

import json
import math
import os

import pytest

from data_prep.corpus.corpus import entropy_nats, publish, read_corpus
from data_prep.execution.files import lock_folder
from gpt.errors import ConfigError


def test_entropy_of_counts():
    assert entropy_nats([5, 5, 0, 5, 5]) == pytest.approx(math.log(4))
    assert entropy_nats([7, 0]) == entropy_nats([]) == 0


def test_publishing_is_all_or_nothing(tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    sources = {name: work / name for name in ("train.bin", "train.idx")}
    for name, path in sources.items():
        path.write_text(f"first {name}")
    publish(out, sources, {"n": 1})
    assert read_corpus(out) == {"n": 1}
    before = (out / "corpus.json").stat().st_mtime_ns, (out / "train.bin").stat().st_ino
    publish(out, sources, {"n": 1})
    assert ((out / "corpus.json").stat().st_mtime_ns, (out / "train.bin").stat().st_ino) == before, "nothing was to do"
    for name, path in sources.items():
        path.unlink()
        path.write_text(f"second {name}")
    real_link = os.link

    def full(source, target, *length):
        if length or source.name == "train.idx":  # linking and copying both fail
            raise OSError(28, "No space left on device")
        real_link(source, target)

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        publish(out, sources, {"n": 2})
    assert read_corpus(out) == {"n": 1}
    assert sorted(path.name for path in out.iterdir()) == ["corpus.json", "train.bin", "train.idx"]
    assert (out / "train.bin").read_text() == "first train.bin"
    monkeypatch.undo()
    (out / ".tmp-1-train.bin").write_text("left by a killed run")
    for name in ("train-00000-of-00002.bin", "validation.idx"):
        (out / name).write_text("of an older corpus")
    (out / "training.bin").write_text("not a token file")
    publish(out, sources, {"n": 2})
    assert json.loads((out / "corpus.json").read_text()) == {"n": 2}
    assert (out / "train.idx").read_text() == "second train.idx"
    assert sorted(path.name for path in out.iterdir()) == ["corpus.json", "train.bin", "train.idx", "training.bin"]


def test_a_damaged_description_is_replaced_and_a_pipe_in_its_place_is_refused(tmp_path):
    source, out = tmp_path / "train.bin", tmp_path / "out"
    source.write_text("tokens")
    publish(out, {"train.bin": source}, {"n": 1})
    (out / "corpus.json").write_bytes(b"\xff{")
    publish(out, {"train.bin": source}, {"n": 1})
    assert read_corpus(out) == {"n": 1}
    (out / "corpus.json").unlink()
    os.mkfifo(out / "corpus.json")
    with pytest.raises(ConfigError, match=r"corpus\.json is a named pipe"):
        publish(out, {"train.bin": source}, {"n": 1})


def test_publishing_to_a_locked_folder_is_an_error(tmp_path):
    (tmp_path / "train.bin").write_text("x")
    (tmp_path / "out").mkdir()
    with (
        lock_folder(tmp_path / "out"),
        pytest.raises(ConfigError, match="another run is writing its corpus here"),
    ):
        publish(tmp_path / "out", {"train.bin": tmp_path / "train.bin"}, {"n": 1})
    assert list((tmp_path / "out").iterdir()) == []
    publish(tmp_path / "out", {"train.bin": tmp_path / "train.bin"}, {"n": 1})


def test_a_folder_without_a_corpus_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="Run `triaxial prepare`"):
        read_corpus(tmp_path)
