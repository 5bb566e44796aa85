"""What the tests of labelling share: a small taxonomy, texts made by rule, a server, and a real browser."""

import http.client
import json
import threading
from contextlib import contextmanager

import pytest

from gpt.moderation.taxonomy import parse_taxonomy
from launch.labelling.answers import AnswerFile
from launch.labelling.server import LabellingServer
from launch.labelling.task import LabellingTask
from launch.labelling.texts import TextToLabel

HOSTILE = (
    '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"> <b>bold</b> &amp; \u2028'
)
CATEGORIES = [
    {"id": "A", "title": "Animals", "definition": "It names an animal."},
    {"id": "B", "title": "Birds", "definition": "It names a bird.", "parent": "A"},
    {"id": "L", "title": "Loud", "definition": "It shouts.", "severity": 1},
    {"id": "L3", "title": "Very loud", "definition": "All of it shouts.", "parent": "L", "severity": 3},
    {
        "id": "X",
        "title": f"Hostile {HOSTILE}",
        "definition": HOSTILE,
        "instructions": HOSTILE,
        "examples": [{"text": HOSTILE, "label": 1, "reason": HOSTILE}],
    },
]


@pytest.fixture(scope="session")
def taxonomy():
    return parse_taxonomy({"name": "zoo", "version": 2, "category": CATEGORIES}, where="zoo.toml")


@pytest.fixture(scope="session")
def hostile():
    return HOSTILE


@pytest.fixture
def task_of(taxonomy, tmp_path):
    """task_of(n, ...): a task of n harmless texts whose labels go to labels.jsonl."""

    def make(n=5, *, texts=None, file="labels.jsonl", **settings):
        texts = texts or [TextToLabel(f"t{i}", f"Text number {i}.", {"pipeline": "random"}) for i in range(n)]
        return LabellingTask(texts, taxonomy, AnswerFile(tmp_path / file), **settings)

    return make


@pytest.fixture
def serving():
    """serving(task, labellers) as a context: a server that answers."""

    @contextmanager
    def serve(task, labellers=("ana",), **settings):
        with LabellingServer(task, labellers, **settings) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join(timeout=60)

    return serve


@pytest.fixture
def lines(tmp_path):
    """lines(): the records of labels.jsonl."""
    return lambda name="labels.jsonl": [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


@pytest.fixture(scope="session")
def post():
    """post(server, token, action, body, headers): status and JSON of an answer."""

    def send(server, token, action, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        body = {"window": "w", **(body or {})} if not isinstance(body, bytes) else body
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("POST", f"/{token}/{action}", data, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    return send
