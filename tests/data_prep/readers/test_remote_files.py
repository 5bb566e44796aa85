"""Read and write behind URLs: real fsspec file systems that need no cloud, and a web server on this machine."""

import gzip
import json
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.execution.progress import ProgressBars
from data_prep.inputs.find import find_inputs, local_inputs
from data_prep.pipeline import prepare
from data_prep.readers.remote_files import RemoteFile, find_remote, local_copy, read_stub, write_stub
from data_prep.recipe import PrepareConfig
from gpt.errors import ConfigError
from launch.config.recipe import build

fsspec = pytest.importorskip("fsspec", reason="the extra 'data' is not installed")
pytest.importorskip("isal", reason="the extra 'data' is not installed")


def fetch(stub: Path, folder: Path, *, max_bytes: int = 1 << 20) -> bytes:
    with local_copy(stub, folder, max_bytes=max_bytes, waits_s=(0.0, 0.0)) as copy:
        assert copy.parent == folder
        data = copy.read_bytes()
    assert not copy.exists()
    return data


def test_files_are_found_and_copied_from_every_kind_of_system(tmp_path, site, memory):
    pytest.importorskip("aiohttp")
    system, url = memory
    for n in range(2):
        (tmp_path / f"disk{n}.jsonl").write_bytes(b"disk %d" % n)
        system.pipe(f"{url}/deep/memory{n}.jsonl", b"memory %d" % n)
        site.files[f"/web{n}.jsonl"] = b"web %d" % n
    system.pipe(f"{url}/deep/other.csv", b"")
    patterns = [f"file://{tmp_path}/*.jsonl", f"{url}/**/*.jsonl", f"{site.url}/*.jsonl", f"{site.url}/web0.jsonl"]
    found = find_inputs([*patterns, str(tmp_path / "disk0.jsonl")])
    assert found[0] == tmp_path / "disk0.jsonl", "a local file stays a path"
    names = [f"{kind}{n}.jsonl" for kind in ("disk", "web", "memory") for n in (0, 1)]
    assert [file.name for file in found[1:]] == names
    assert {file.n_bytes for file in found[1:]} == {6, 5, 8}
    stubs = local_inputs(found, tmp_path / "stubs")[1:]
    assert site.asked["GET /web0.jsonl"] == 0, "listing fetches no file"
    assert [fetch(stub, tmp_path) for stub in stubs] == [
        b"%s %d" % (kind, n) for kind in (b"disk", b"web", b"memory") for n in (0, 1)
    ]
    assert local_inputs(found, tmp_path / "stubs")[1:] == stubs


def test_the_stub_of_a_remote_file_depends_on_its_version(tmp_path, site, memory):
    pytest.importorskip("aiohttp")
    system, url = memory
    site.files["/a.txt"] = b"one"
    system.pipe(f"{url}/a.txt", b"one")
    for address in (f"{site.url}/a.txt", f"{url}/a.txt"):
        before = [write_stub(find_remote(address)[0], tmp_path) for _ in range(2)]
        assert before[0] == before[1]
        assert read_stub(before[0]).n_bytes == 3
        site.files["/a.txt"] = b"two"
        system.pipe(f"{url}/a.txt", b"two")
        assert write_stub(find_remote(address)[0], tmp_path) != before[0]
        with pytest.raises(ConfigError, match="has changed since this run began"):
            fetch(before[0], tmp_path)


def test_another_size_than_announced_is_an_error(tmp_path, memory):
    system, url = memory
    system.pipe(f"{url}/a.txt", b"four")
    for n_bytes, message in ((5, "4 of 5 bytes came"), (3, "more than the 3 bytes")):
        with pytest.raises(ConfigError, match=message):
            fetch(write_stub(RemoteFile(f"{url}/a.txt", n_bytes, {}), tmp_path), tmp_path)
    assert fetch(write_stub(RemoteFile(f"{url}/a.txt", None, {}), tmp_path), tmp_path) == b"four"


def test_a_damaged_stub_is_written_again(tmp_path):
    file = RemoteFile("https://example.org/a.txt", 4, {})
    write_stub(file, tmp_path).write_text("{")
    assert read_stub(write_stub(file, tmp_path)) == file


def test_failed_downloads_are_tried_again_and_leave_no_half_copy(tmp_path, site):
    pytest.importorskip("aiohttp")
    site.files["/a.txt"] = b"some bytes of a text"
    (file,) = find_remote(f"{site.url}/a.txt")
    stub = write_stub(file, tmp_path)
    site.failures = ["503", "cut"]
    assert fetch(stub, tmp_path) == site.files["/a.txt"], "the third attempt"
    site.failures = ["cut", "503", "cut"]
    with pytest.raises(ConfigError, match=r"/a\.txt: "):
        fetch(stub, tmp_path)
    with pytest.raises(
        ConfigError, match=r"input\.max_download_bytes = 10 is invalid: must be at least 20, the size of"
    ):
        fetch(stub, tmp_path, max_bytes=10)
    asked = site.asked.total()
    with pytest.raises(ConfigError, match="no file matches"):
        find_remote(f"{site.url}/missing.txt")
    del site.files["/a.txt"]
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        fetch(stub, tmp_path)
    assert site.asked.total() <= asked + 4, "a missing file is not requested repeatedly"
    assert [path.name for path in tmp_path.iterdir()] == [stub.name], "no half copies"


def test_mistakes_in_urls_are_errors_without_their_secrets(tmp_path):
    for url, message in [
        ("s3://bucket/a.txt", "s3fs"),
        ("nonsense://bucket/a.txt", "Protocol not known: nonsense"),
        ("https://user:secret@host/a.txt", "a password in the URL of https://host"),
        ("zip://a.txt::https://user:secret@host/a.zip", "a password in the URL of https://host"),
        ("s3://key:secret@bucket/a.txt", "a password in the URL of s3://bucket"),
        ("https://secret@host/a.txt", "a user in the URL of https://host"),
        ("https://host/a.txt?X-Amz-Signature=secret", "a key or signature in the URL of https://host"),
        ("https://host/a.txt?n=1&access_token=secret", "a key or signature in the URL of https://host"),
        (f"file://{tmp_path}/*.txt", "no file matches"),
    ]:
        with pytest.raises(ConfigError, match=message) as raised:
            find_inputs([url])
        assert "secret" not in str(raised.value)
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"'a\.csv' is invalid: the ending is unknown"):
        find_inputs([f"file://{tmp_path}/a.csv"])


def recipe(output: dict[str, object], paths: list[str]) -> PrepareConfig:
    table = {
        "input": {"paths": paths},
        "output": {**output, "validation_fraction": 0.2},
        "quality": {"rules": []},
        "dedup_minhash": {"enabled": False},
        "tokenizer": {"vocab_size": 400},
    }
    return build(PrepareConfig, table, where="")


def test_a_corpus_is_made_from_a_web_server_to_a_remote_folder(tmp_path, site, prose):
    """A second run fetches nothing; after a change, only the changed file is fetched."""
    pytest.importorskip("aiohttp")
    for name, seeds in (("a", range(10)), ("b", range(10, 20))):
        lines = [json.dumps({"id": f"{name}{seed}", "text": prose(seed)}) for seed in seeds]
        site.files[f"/{name}.jsonl.gz"] = gzip.compress("\n".join(lines).encode(), mtime=0)
    output = {"folder": f"file://{tmp_path}/away/corpus", "work": str(tmp_path / "work")}
    config = recipe(output, [f"{site.url}/*.jsonl.gz"])

    def run() -> dict[str, object]:
        prepare(config, n_workers=2, progress=ProgressBars(Console(file=StringIO())))
        return json.loads((tmp_path / "away/corpus/corpus.json").read_text())

    first = run()
    assert first["documents"] == 20
    for name in ("train.bin", "validation.idx", "tokenizer.model"):
        assert (tmp_path / "away/corpus" / name).stat().st_size > 0
    fetched = Counter({key: n for key, n in site.asked.items() if key.startswith("GET") and not key.endswith("/")})
    assert fetched == {"GET /a.jsonl.gz": 1, "GET /b.jsonl.gz": 1}
    assert run() == first
    site.files["/b.jsonl.gz"] = gzip.compress(json.dumps({"id": "new", "text": prose(99)}).encode())
    assert run()["documents"] == 11
    asked = {key: n for key, n in site.asked.items() if key.startswith("GET") and not key.endswith("/")}
    assert asked == {"GET /a.jsonl.gz": 1, "GET /b.jsonl.gz": 2}
    assert not list((tmp_path / "work").rglob(".*tmp-*"))
