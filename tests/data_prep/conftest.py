"""Material for the tests of data_prep: seeded English prose, WARC records, small stages."""

import gzip
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

SUBJECTS = ["the old miller", "a young sailor", "our neighbour", "the committee", "every student", "her brother"]
VERBS = ["carried", "described", "followed", "remembered", "repaired", "questioned", "discovered", "painted"]
OBJECTS = ["the broken wheel", "a letter from home", "the winter harvest", "an unusual map", "the quiet harbour"]
ENDS = ["before the evening bell", "with great care", "and that was enough", "to everyone in the village"]


@pytest.fixture(scope="session")
def prose() -> Callable[..., str]:
    """prose(seed, sentences=12): English text that passes every quality rule, different for each seed."""

    def make(seed: int, sentences: int = 12) -> str:
        rng = random.Random(seed)
        lines, sentence = [], []
        for number in range(sentences):
            words = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} {rng.choice(ENDS)}"
            unusual = "".join(rng.choices("bcdfglmnprst", k=3)) + "".join(rng.choices("aeiou", k=2))
            sentence.append(f"{words[0].upper()}{words[1:]}, near {unusual} {seed * 31 + number}.")
            if len(sentence) == 3:
                lines.append(" ".join(sentence))
                sentence = []
        return "\n".join([*lines, " ".join(sentence)]).strip()

    return make


@pytest.fixture(scope="session")
def warc_record() -> Callable[..., bytes]:
    """warc_record(body, ...): one record; `kind` response by default, gzip member unless packed=False."""

    def make(
        body: bytes,
        *,
        url: str = "http://example.org/",
        kind: str = "response",
        status: str = "200 OK",
        http: str = "Content-Type: text/html; charset=utf-8\r\n",
        record_id: str | None = None,
        content_type: str = "application/http; msgtype=response",
        packed: bool = True,
    ) -> bytes:
        block = f"HTTP/1.1 {status}\r\n{http}\r\n".encode() + body if kind == "response" else body
        name = f"WARC-Record-ID: <{record_id}>\r\n" if record_id else ""
        head = (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\n{name}WARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
        )
        record = head.encode() + block + b"\r\n\r\n"
        return gzip.compress(record, mtime=0) if packed else record

    return make


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Stage functions that worker processes can import; tests may put more into tmp_path / "code"."""
    (tmp_path / "code").mkdir()
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    import stage_functions

    return stage_functions


@pytest.fixture
def sources(tmp_path):
    paths = [tmp_path / f"{name}.in" for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


@pytest.fixture
def run_stage():
    """run_stage(folder, function, sources, config): run the stage "copy" on each source; return the finished tasks."""
    pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
    from rich.console import Console

    from data_prep.execution.progress import ProgressBars
    from data_prep.execution.tasks import Stage, Task
    from data_prep.execution.workers import LocalWorkers
    from data_prep.execution.workspace import Workspace

    def run(folder, function, sources, config, n_workers=1, executor=LocalWorkers):
        quiet = ProgressBars(Console(quiet=True))
        with Workspace(folder, n_workers=n_workers, progress=quiet, executor=executor) as workspace:
            stage = Stage("copy", function, packages=("numpy",))
            tasks = [Task(config, (path,), (workspace.folder / "copy" / f"{path.stem}.out",)) for path in sources]
            return workspace.run(stage, tasks)

    return run


@pytest.fixture
def quiet():
    """Progress that prints nothing."""
    from rich.console import Console

    from data_prep.execution.progress import ProgressBars

    return ProgressBars(Console(quiet=True))


@pytest.fixture
def memory():
    """A folder of fsspec's memory file system, and its URL."""
    fsspec = pytest.importorskip("fsspec", reason="the extra 'data' is not installed")
    name = uuid.uuid4().hex
    yield fsspec.filesystem("memory"), f"memory://{name}"
    fsspec.filesystem("memory").rm(name, recursive=True)
