"""Material for the tests of data_prep: seeded English prose, WARC records, small stages."""

import gzip
import http.server
import json
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

SUBJECTS = ["the old miller", "a young sailor", "our neighbour", "the committee", "every student", "her brother"]
VERBS = ["carried", "described", "followed", "remembered", "repaired", "questioned", "discovered", "painted"]
OBJECTS = ["the broken wheel", "a letter from home", "the winter harvest", "an unusual map", "the quiet harbour"]
CHAT_TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n",
    "Hello there, how are you today?\n\n",
    "one two three four",
]
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


class Site:
    """A web server: files in memory with their tags, the requests so far, and planned failures."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.failures: list[str] = []  # for the next downloads: "503", or "cut" after half of the bytes
        self.together: threading.Barrier | None = None  # questions that wait for each other

    def tag(self, path: str) -> str:
        return f'"{hash(self.files[path]):x}"'


@pytest.fixture
def site():
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if site.together is not None:
                site.together.wait()
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            site.asked[f"{self.command} {self.path}"] += 1
            body = site.files.get(self.path)
            if self.path.endswith("/"):
                body = "".join(f'<a href="{name}">x</a>' for name in site.files).encode()
            failure = site.failures.pop(0) if with_body and site.failures and self.path in site.files else ""
            if body is None or failure == "503":
                self.send_error(404 if body is None else 503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if self.path in site.files:
                self.send_header("ETag", site.tag(self.path))
            self.end_headers()
            if with_body:
                self.wfile.write(body[: len(body) // 2] if failure == "cut" else body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory):
    """make_tokenizer(special tokens, template=None): the path of a tokenizer.json in a folder of its own."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")

    def make(special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), template=None):
        folder = tmp_path_factory.mktemp("tokenizer")
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        )
        model.train_from_iterator(CHAT_TEXTS * 3, trainer)
        model.save(str(folder / "tokenizer.json"))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
            names = {"eos_token": special[-1], "pad_token": special[0]}
            (folder / "tokenizer_config.json").write_text(json.dumps(names))
        return folder / "tokenizer.json"

    return make
