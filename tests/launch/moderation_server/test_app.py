"""A real server process answers real clients: right scores, clear refusals, nothing lost, no text in its log."""

import http.client
import json
import random
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rule_server import rule
from served import in_threads, served

pytest.importorskip("aiohttp", reason="aiohttp is not installed; it comes with the extra 'serve'")
PROGRAM = Path(__file__).parents[1] / "rule_server.py"
MODERATIONS, ANALYZE = "/v1/moderations", "/v1alpha1/comments:analyze"


@pytest.fixture(scope="module")
def server():
    with served([PROGRAM, 0, json.dumps({"max_body_bytes": 20_000, "max_text_bytes": 5000, "max_texts": 8})]) as found:
        yield found


def test_openais_form(server):
    status, found, headers = server.ask(MODERATIONS, {"input": ["aaab", "xyz", "b"]})
    assert status == 200
    assert found["model"] == headers["X-Model-Version"] == "rule-1"
    assert found["id"].startswith("modr-")
    assert [one["category_scores"] for one in found["results"]] == [
        {"A": 0.75, "B": 0.25, "TOXICITY": 0.75},
        {"A": 0.0, "B": 0.0, "TOXICITY": 0.0},
        {"A": 0.0, "B": 1.0, "TOXICITY": 0.0},
    ]
    assert [one["categories"] for one in found["results"]] == [
        {"A": True, "B": True, "TOXICITY": True},
        {"A": False, "B": False, "TOXICITY": False},
        {"A": False, "B": True, "TOXICITY": False},
    ]
    assert [one["flagged"] for one in found["results"]] == [True, False, True]
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "bbbx"}]
    (one,) = server.ask(MODERATIONS, {"input": parts, "model": "any"})[1]["results"]
    assert one["category_scores"] == {"A": 0.5, "B": 0.75, "TOXICITY": 0.5}  # the largest of the parts
    assert server.ask(MODERATIONS, {"input": "ab"})[1]["results"][0]["category_scores"] == {
        "A": 0.5,
        "B": 0.5,
        "TOXICITY": 0.5,
    }


def test_perspectives_form(server):
    body = {
        "comment": {"text": "aab"},
        "requestedAttributes": {"TOXICITY": {}, "B": {"scoreThreshold": 0.5}},
        "languages": ["en"],
        "doNotStore": True,
        "clientToken": "mine",
    }
    status, found, _ = server.ask(ANALYZE, body)
    assert status == 200
    score = {"value": pytest.approx(2 / 3), "type": "PROBABILITY"}
    assert found == {
        "attributeScores": {
            "TOXICITY": {"spanScores": [{"begin": 0, "end": 3, "score": score}], "summaryScore": score}
        },
        "languages": ["en"],
        "clientToken": "mine",
        "model": "rule-1",
    }


def test_health_names_the_model(server):
    status, found, _ = server.ask("/health")
    assert (status, found["status"], found["model"], found["categories"]) == (200, "ok", "rule-1", ["A", "B"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "not_json"),
        (b"{", 400, "not_json"),
        (b"[" * 9000, 400, "not_json"),
        (b'{"input": NaN', 400, "not_json"),
        (b'{"input": "\xff\xfe"}', 400, "not_utf8"),
        (b'["text"]', 400, "not_an_object"),
        (b"{}", 400, "invalid_request"),
        (b'{"input": 3}', 400, "invalid_request"),
        (b'{"input": [1]}', 400, "invalid_request"),
        (b'{"input": []}', 400, "empty_text"),
        (b'{"input": "  \\n"}', 400, "empty_text"),
        (b'{"input": ["a", ""]}', 400, "empty_text"),
        (b'{"input": [{"type": "image_url", "image_url": {}}]}', 400, "invalid_request"),
        (json.dumps({"input": ["a"] * 9}).encode(), 413, "too_many_texts"),
        (json.dumps({"input": "a" * 5001}).encode(), 413, "text_too_long"),
        (json.dumps({"input": "a" * 30_000}).encode(), 413, "request_too_large"),
    ],
)
def test_wrong_requests_get_a_clear_answer(server, body, status, code):
    found_status, found, headers = server.ask(MODERATIONS, raw=body)
    assert (found_status, found["error"]["code"]) == (status, code)
    assert found["model"] == headers["X-Model-Version"] == "rule-1"
    assert found["error"]["message"]
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"comment": None}, "comment"),
        ({"comment": {"text": ""}}, "comment.text"),
        ({"comment": {"text": "a", "type": "HTML"}}, "comment.type"),
        ({"requestedAttributes": {}}, "requestedAttributes"),
        ({"requestedAttributes": {"SPAM": {}}}, "requestedAttributes"),
        ({"requestedAttributes": {"a text with blanks": {}}}, "requestedAttributes"),
        ({"requestedAttributes": {"A": {"scoreThreshold": 2}}}, "requestedAttributes.A.scoreThreshold"),
        ({"languages": "en"}, "languages"),
        ({"clientToken": 3}, "clientToken"),
    ],
)
def test_wrong_requests_in_perspectives_form(server, change, field):
    body = {"comment": {"text": "a"}, "requestedAttributes": {"A": {}}, **change}
    status, found, _ = server.ask(ANALYZE, body)
    assert (status, found["error"]["status"], found["error"]["code"]) == (400, "INVALID_ARGUMENT", 400)
    assert found["error"]["details"][0]["field"] == field
    assert ("the unknown name SPAM. Use A" in found["error"]["message"]) == ("SPAM" in str(change))
    if "requestedAttributes" in change and "a text" in str(change):
        assert "a text" not in str(found)


def test_texts_that_are_odd_but_valid_are_scored(server):
    for text in ("a\0b", "\ud800ab", "é" * 2000, "<script>alert(1)</script>", "a" * 5000):
        status, found, _ = server.ask(MODERATIONS, {"input": text})
        whole = text.replace("\ud800", "\ufffd")
        assert status == 200
        assert list(found["results"][0]["category_scores"].values())[:2] == rule(whole)


def test_other_addresses_methods_and_encodings_are_refused(server):
    assert server.ask("/v1/other", {})[0] == 404
    assert server.ask(MODERATIONS)[0] == 405
    status, found, _ = server.ask(MODERATIONS, raw=b"x", headers={"Content-Encoding": "gzip"})
    assert (status, found["error"]["code"]) == (415, "encoded_body")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(b"no http at all\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400") or raw.recv(1) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:  # chunks without an end
        raw.sendall(b"POST /v1/moderations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n4000\r\n" + b" " * 0x4000 + b"\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_fault_of_the_model_spoils_one_request_and_shows_no_text():
    with served([PROGRAM, 0, json.dumps({"pause_s": 0.05})]) as server:

        def ask(number):
            return server.ask(MODERATIONS, {"input": "my fault" if number == 3 else "ab"})

        answers = in_threads(8, ask)
        assert [status for status, _, _ in answers] == [200] * 3 + [500] + [200] * 4
        assert answers[3][1]["error"]["code"] == "server_fault"
        _, out, err = server.stop()
        assert "fault: ValueError at" in err
        for word in ("my", "cannot score", "ab'"):
            assert word not in err + out + json.dumps(answers[3][1])


def test_fifty_clients_lose_nothing_and_get_their_own_scores():
    """Each client sends its own texts, in both forms, some on one connection and some on many. Tolerance: none."""
    with served([PROGRAM, 0, json.dumps({"pause_s": 0.002, "max_batch_bytes": 4000})]) as server:
        for number in range(3):
            server.ask(MODERATIONS, {"input": f"ab{number}"})

        def client(number):
            draw, wrong, asked = random.Random(number), 0, 0
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
            for _ in range(40):
                texts = ["".join(draw.choices("abcdef", k=draw.randint(1, 300))) for _ in range(draw.randint(1, 4))]
                kept = connection if draw.random() < 0.8 else None
                asked += 1
                if draw.random() < 0.5:
                    _, found, _ = server.ask(MODERATIONS, {"input": texts}, connection=kept)
                    got = [list(one["category_scores"].values())[:2] for one in found["results"]]
                    wrong += got != [rule(text) for text in texts]
                else:
                    body = {"comment": {"text": texts[0]}, "requestedAttributes": {"A": {}, "B": {}}}
                    _, found, _ = server.ask(ANALYZE, body, connection=kept)
                    got = [found["attributeScores"][name]["summaryScore"]["value"] for name in "AB"]
                    wrong += got != rule(texts[0])
            connection.close()
            return wrong, asked

        first = in_threads(50, client)
        memory = server.memory_bytes()
        second = in_threads(50, client)
        assert sum(wrong for wrong, _ in first + second) == 0
        health = server.ask("/health")[1]
        assert health["answered"] == sum(asked for _, asked in first + second) + 3
        assert (health["waiting_texts"], health["refused"]) == (0, 0)
        assert server.memory_bytes() - memory < 8 << 20  # bytes, of 2,000 more requests
        status, _, err = server.stop()
        assert status == 0
        assert "abc" not in err


def test_a_flood_is_refused_with_the_time_to_wait():
    with served([PROGRAM, 0, json.dumps({"pause_s": 0.2, "max_waiting": 6, "max_batch_bytes": 8})]) as server:
        answers = in_threads(30, lambda number: server.ask(MODERATIONS, {"input": ["aaab", "b"]}))
        refused = [(found, headers) for status, found, headers in answers if status == 429]
        assert {status for status, _, _ in answers} == {200, 429}
        assert len(refused) >= 10
        for found, headers in refused:
            assert found["error"]["code"] == "queue_full"
            assert int(headers["Retry-After"]) >= 1
        assert server.ask(MODERATIONS, {"input": "ab"})[0] == 200
        assert server.ask("/health")[1]["waiting_texts"] == 0


def test_connections_without_a_request_have_a_limit_and_a_time():
    with served([PROGRAM, 0, json.dumps({"max_connections": 20, "read_timeout_s": 2})]) as server:
        address = ("127.0.0.1", server.port)
        silent = [socket.create_connection(address, timeout=60) for _ in range(20)]
        silent[0].sendall(b"POST /v1/moderations HTTP/1.1\r\nHost: x\r\n")  # and no end of its header
        with socket.create_connection(address, timeout=60) as one_more:
            answer = one_more.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        for one in silent:
            with suppress(ConnectionResetError):
                assert one.recv(10) == b""  # the server has closed it
        kept = http.client.HTTPConnection(*address, timeout=60)
        assert server.ask(MODERATIONS, {"input": "ab"}, connection=kept)[0] == 200
        time.sleep(3)  # a connection that has sent a request may wait longer for its next
        assert server.ask(MODERATIONS, {"input": "ab"}, connection=kept)[0] == 200
        kept.close()
        assert server.stop()[0] == 0


def test_clients_that_leave_cost_nothing_more():
    with served([PROGRAM, 0, json.dumps({"pause_s": 0.1, "max_batch_bytes": 4})]) as server:
        body = b'{"input": "aaab"}'
        head = b"POST /v1/moderations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        left = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
        for one in left:
            one.sendall(head + body)
        time.sleep(0.15)
        for one in left:
            one.close()
        started = time.monotonic()
        assert server.ask(MODERATIONS, {"input": "ab"})[0] == 200
        assert time.monotonic() - started < 3.0  # not the 4 s of all that left


def test_a_wrong_key_is_refused():
    with served([PROGRAM, 0, json.dumps({"key": "secret"})]) as server:
        body = {"input": "ab"}
        assert server.ask(MODERATIONS, body)[0] == 401
        assert server.ask(MODERATIONS, body, headers={"Authorization": "Bearer other"})[0] == 401
        assert server.ask(MODERATIONS, body, headers={"Authorization": "Bearer \xff"})[0] == 401, "not UTF-8"
        assert server.ask(MODERATIONS, body, headers={"Authorization": "Bearer secret"})[0] == 200
        assert server.ask(f"{MODERATIONS}?key=secret", body)[0] == 200
        assert server.ask("/health")[0] == 200
