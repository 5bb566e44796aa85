"""A corpus is copied to a URL, corpus.json last."""

from pathlib import Path

import pytest

from data_prep.corpus.upload import check_target, upload_corpus, url_of
from gpt.errors import ConfigError

pytest.importorskip("fsspec", reason="the extra 'data' is not installed")


def test_urls_are_separated_from_local_folders():
    addresses = ["s3://bucket/a/b", "gs://bucket", "file:///tmp/x", "memory://a", "sftp://me@host/x"]
    assert [url_of(Path(address)) for address in addresses] == addresses
    assert [url_of(Path(path)) for path in ("data/x", "/tmp/a", "a:b", "c:/x")] == [None] * 4


def test_a_url_that_cannot_be_written_to_is_an_error():
    with pytest.raises(ConfigError, match="cannot be written over http"):
        check_target("http://host/corpus")


def test_an_upload_sends_changed_files_and_corpus_json_last(tmp_path, memory):
    system, url = memory
    (tmp_path / "train.bin").write_bytes(bytes(100))
    (tmp_path / "corpus.json").write_text('{"n": 1}')
    (tmp_path / ".hidden").write_text("")
    check_target(url)
    upload_corpus(tmp_path, url)
    assert {Path(name).name for name in system.ls(url, detail=False)} == {"train.bin", "corpus.json"}
    times = {name: system.info(name)["created"] for name in system.ls(url, detail=False)}
    upload_corpus(tmp_path, url)
    assert {name: system.info(name)["created"] for name in times} == times
    (tmp_path / "corpus.json").write_text('{"n": 2}')
    (tmp_path / "train.bin").write_bytes(bytes(50))
    upload_corpus(tmp_path, url)
    assert system.cat(f"{url}/corpus.json") == b'{"n": 2}'
    assert system.size(f"{url}/train.bin") == 50
    system.pipe(f"{url}/train.bin", b"cut")
    upload_corpus(tmp_path, url)
    assert system.size(f"{url}/train.bin") == 50
    assert max(times.values()) < system.created(f"{url}/corpus.json"), "written after the others"
    assert system.created(f"{url}/train.bin") <= system.created(f"{url}/corpus.json")
