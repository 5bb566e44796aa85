"""The server answers its own page on this machine, loses nothing in a flood, and tells strangers nothing."""

import http.client
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor

from launch.labelling.server import MAX_BODY_BYTES
from launch.local_pages.server import MAX_CONNECTIONS

NO = {"A": 0, "B": 0, "L": 0, "L3": 0, "X": 0}


def get(server, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def test_the_page_holds_the_taxonomy_and_no_text(task_of, serving):
    with serving(task_of(3)) as server:
        status, page, headers = get(server, f"/{server.tokens['ana']}/")
    assert status == 200
    assert "Animals" in page
    assert "Text number" not in page
    assert (headers["X-Frame-Options"], headers["Cache-Control"]) == ("DENY", "no-store")
    assert headers["Referrer-Policy"] == "no-referrer", "the address has a token in it"


def test_each_labeller_has_an_address_and_sees_nothing_of_the_other(task_of, serving, post, lines):
    with serving(task_of(2), ["ana", "ben"]) as server:
        ana, ben = server.tokens["ana"], server.tokens["ben"]
        assert ana != ben
        status, state = post(server, ana, "answer", {"id": "t0", "labels": {**NO, "A": 1}, "labeller": "ben"})
        assert (status, state["done"]) == (200, 1)
        status, state = post(server, ben, "state")
        assert (status, state["item"], state["done"]) == (200, {"id": "t0", "text": "Text number 0."}, 0)
        assert post(server, ben, "answer", {"id": "t0", "labels": NO})[1]["done"] == 1
    assert [(line["labeller"], line["labels"]["A"]) for line in lines()] == [("ana", 1), ("ben", 0)]


def test_a_stranger_gets_nothing(task_of, serving, post, lines, tmp_path):
    good = {"id": "t0", "labels": NO}
    with serving(task_of(2)) as server:
        token = server.tokens["ana"]
        assert get(server, "/")[0] == 404
        assert get(server, f"/{token[:-1]}/")[0] == 404
        assert get(server, f"/{token}/state")[0] == 404
        assert get(server, "/%ff%fe/")[0] == 404
        assert get(server, f"/{token}/", Host="example.org")[0] == 404, "a name that leads here"
        assert get(server, f"/{token}/", Host="127.0.0.1.example.org")[0] == 404
        assert post(server, token[:-1], "answer", good)[0] == 404
        assert post(server, token, "labels.jsonl", good)[0] == 404
        assert post(server, token, "answer", good, Host="example.org")[0] == 404
        assert post(server, token, "answer", good, Origin="http://example.org")[0] == 403
        assert post(server, token, "answer", good, **{"Content-Type": "text/plain"})[0] == 415
        assert server.server_address[0] == "127.0.0.1"
        assert not (tmp_path / "labels.jsonl").exists() or not lines()
        here = f"http://127.0.0.1:{server.server_port}"
        assert post(server, token, "answer", good, Origin=here)[0] == 200
    assert len(lines()) == 1


def test_wrong_requests_get_a_clear_answer(task_of, serving, post, capfd):
    with serving(task_of(2)) as server:
        token = server.tokens["ana"]
        assert post(server, token, "answer", b"{")[0] == 400
        assert post(server, token, "answer", b"[" * 5000)[0] == 400
        assert post(server, token, "answer", b"[]")[0] == 400
        assert post(server, token, "answer", b"\xff")[0] == 400
        assert post(server, token, "answer", {"id": ["t0"], "labels": NO}) == (400, {"problem": "unknown text"})
        status, found = post(server, token, "answer", {"id": "t0", "labels": {**NO, "B": 1}})
        assert (status, found) == (400, {"problem": "a category is positive, and its parent is not"})
        status, found = post(server, token, "answer", b'"' + b"a" * MAX_BODY_BYTES + b'"')
        assert (status, found["problem"]) == (413, "the body has more than 65,536 bytes")
        for length in ("-5", "1e3", "", "9" * 500, "0" * 12 + "9" * 10):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
                head = f"POST /{token}/state HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
                rest = f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
                connection.sendall((head + rest).encode())
                assert connection.recv(100)[:12] in (b"HTTP/1.1 411", b"HTTP/1.1 413")
        assert post(server, token, "state")[1]["left"] == 2
    assert capfd.readouterr().err == ""


def test_a_disk_that_refuses_is_said_and_the_answer_can_be_sent_again(task_of, serving, post, lines, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with serving(task_of(2)) as server:
        token, good = server.tokens["ana"], {"id": "t0", "labels": NO}
        assert post(server, token, "state")[0] == 200
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            status, found = post(server, token, "answer", good)
        assert (status, found) == (507, {"problem": "the disk refuses it: no space left on device"})
        assert lines() == []
        assert post(server, token, "answer", good)[1]["done"] == 1
    assert len(lines()) == 1


def test_a_flood_and_closed_connections_lose_no_answer(task_of, serving, post, lines, capfd):
    with serving(task_of(30)) as server:
        token, address = server.tokens["ana"], ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address, timeout=60) for _ in range(MAX_CONNECTIONS - 8)]
        for connection in idle[:20]:
            connection.sendall(b"POST / HTTP/1.1\r\n")  # and never ends it
        for _ in range(20):
            with socket.create_connection(address) as connection:
                connection.sendall(f"GET /{token}/ HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n\r\n".encode())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed with a reset

        def answer(i):
            for _ in range(100):  # a page tries again too
                try:
                    return post(server, token, "answer", {"id": f"t{i % 30}", "labels": NO, "window": str(i)})[0]
                except (ConnectionError, http.client.HTTPException, json.JSONDecodeError):
                    continue
            return None

        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(answer, range(90))) == {200}
        for connection in idle:
            connection.close()
    assert sorted(line["id"] for line in lines()) == sorted(f"t{i}" for i in range(30)), "each once"
    assert capfd.readouterr().err == ""
