"""Lists of paths, and questions to servers."""

import gzip
import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.execution.progress import ProgressBars
from data_prep.inputs.config import InputConfig
from data_prep.inputs.input_lists import ask_all, encode_answers, expand_lists, read_answers
from data_prep.pipeline import prepare
from data_prep.plan import plan
from data_prep.readers.remote_files import RemoteFile
from data_prep.recipe import PrepareConfig
from gpt.errors import ConfigError
from launch.config.recipe import build

pytest.importorskip("fsspec", reason="the extra 'data' is not installed")
pytest.importorskip("isal", reason="the extra 'data' is not installed")


def test_a_list_names_files_relative_to_a_base(tmp_path, site):
    names = ["crawl-data/a.warc.gz", "crawl-data/b.warc.gz"]
    (tmp_path / "warc.paths.gz").write_bytes(gzip.compress("\n".join([*names, "", ""]).encode()))
    site.files["/wet.paths"] = b"c.wet\r\n"
    lists = (str(tmp_path / "warc.paths.gz"), f"{site.url}/wet.paths")
    assert expand_lists(lists, "s3://bucket/") == [f"s3://bucket/{name}" for name in (*names, "c.wet")]
    for content in (b"", b"\n\n", b"x" * 100_000, bytes(range(128, 256))):
        (tmp_path / "bad.paths").write_bytes(content)
        with pytest.raises(
            ConfigError, match=r"input\.path_lists: '.*bad\.paths' is invalid: must have one path a line"
        ):
            expand_lists((str(tmp_path / "bad.paths"),), "")
    with pytest.raises(ConfigError, match=r"input\.path_lists: '.*gone\.paths' cannot be read"):
        expand_lists((str(tmp_path / "gone.paths"),), "")
    with pytest.raises(ConfigError, match=r'input\.path_base = "x" is invalid without input\.path_lists'):
        InputConfig(paths=("a",), path_base="x")


def test_servers_are_asked_in_parallel_and_only_for_what_is_not_known(site):
    """Each of 16 questions is answered once all of them have arrived."""
    pytest.importorskip("aiohttp")
    urls = [f"{site.url}/{n}.txt" for n in range(16)]
    site.files |= {f"/{n}.txt": b"x" * n for n in range(18)}
    site.together = threading.Barrier(16, timeout=20)
    found = ask_all(urls, {})
    assert not site.together.broken, "they were asked one after the other"
    assert [(file.url, file.n_bytes, file.pattern) for file in found] == [(url, n, url) for n, url in enumerate(urls)]
    site.together = None
    known = {url: [file] for url, file in zip(urls, found, strict=True)}
    asked = site.asked.total()
    assert ask_all([*urls, f"{site.url}/16.txt"], known)[:16] == found
    assert site.asked.total() == asked + 1


def test_answers_are_kept_by_url(tmp_path):
    files = [RemoteFile(f"s3://b/{n}.txt", n or None, {"ETag": str(n)}, "s3://b/*.txt") for n in range(3)]
    (tmp_path / "remote_files.json").write_text(encode_answers([Path("local"), *files]))
    assert read_answers(tmp_path) == {"s3://b/*.txt": files}
    for damaged in ("[", "[1]", '[{"url": 1}]'):
        (tmp_path / "remote_files.json").write_text(damaged)
        assert read_answers(tmp_path) == {}
    assert read_answers(tmp_path / "none") == {}


def test_a_plan_asks_no_server_again(tmp_path, site, prose):
    pytest.importorskip("aiohttp")
    site.files["/a.txt"] = "\n\n".join(prose(n) for n in range(10)).encode()
    site.files["/all.paths"] = b"/a.txt\n"
    table = {
        "input": {"path_lists": [f"{site.url}/all.paths"], "path_base": site.url, "text_separator": "\n\n"},
        "output": {"folder": str(tmp_path / "corpus"), "validation_fraction": 0.3},
        "quality": {"rules": []},
        "tokenizer": {"vocab_size": 400},
    }
    config = build(PrepareConfig, table, where="")
    before = plan(config)
    assert before.stages[0].n_to_do == 1
    prepare(config, n_workers=1, progress=ProgressBars(Console(file=StringIO())))
    asked = site.asked["HEAD /a.txt"]
    after = plan(config)
    assert (after.source_files, sum(stage.n_to_do for stage in after.stages)) == (1, 0)
    assert site.asked["HEAD /a.txt"] == asked
