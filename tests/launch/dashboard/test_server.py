"""The server answers its own page on this machine, and nobody else."""

import gzip
import http.client
import json
import socket
from urllib.parse import quote

import pytest


@pytest.fixture(scope="module")
def server(serving, written_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("first", 30), ("second <b>", 60)):
        written_runs.write_run(folder / name, steps=steps)
    with serving([folder / "first", folder / "second <b>"]) as running:
        yield running


def ask(server, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_it_gives_the_page_the_runs_and_their_series(server):
    status, page, _ = ask(server, f"/{server.token}/")
    assert status == 200
    assert b"class Chart" in page, "it needs no other file"
    runs = json.loads(ask(server, f"/{server.token}/runs.json")[1])
    assert [run["name"] for run in runs] == ["first", "second <b>"]
    versions = json.loads(ask(server, f"/{server.token}/runs.json?versions")[1])
    assert len(versions) == 2
    assert all(isinstance(version, int) for version in versions)
    name = quote("validation/web <b>/loss")
    series = json.loads(ask(server, f"/{server.token}/series.json?run=1&name={name}")[1])
    assert series == {"step": [60], "value": [7.5]}
    part = json.loads(ask(server, f"/{server.token}/series.json?run=1&name=loss&first=10&last=12")[1])
    assert part["step"] == [10, 11, 12]
    status, report, _ = ask(server, f"/{server.token}/report.html?run=0")
    assert status == 200
    assert b"<h1>first</h1>" in report


def test_a_page_is_sent_packed_to_a_browser(server):
    _, packed, headers = ask(server, f"/{server.token}/", **{"Accept-Encoding": "gzip, br"})
    assert headers["Content-Encoding"] == "gzip"
    _, plain, headers = ask(server, f"/{server.token}/")
    assert headers["Content-Encoding"] is None
    assert len(gzip.decompress(packed)) == len(plain)
    assert len(packed) < 30_000, "a browser that starts shows it at once"


def test_a_stranger_gets_nothing(server, listening):
    assert ask(server, "/")[0] == 404
    assert ask(server, "/runs.json")[0] == 404
    assert ask(server, f"/{server.token[:-1]}/runs.json")[0] == 404
    assert ask(server, "/%ff%fe/runs.json")[0] == 404
    assert ask(server, f"/{server.token}/runs.json", Host="example.org")[0] == 404, "a name that leads here"
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "nothing.json",
        "series.json",
        "series.json?run=2&name=loss",
        "series.json?run=-1&name=loss",
        "series.json?run=x&name=loss",
        "series.json?run=0&name=loss&points=many",
        "report.html?run=9",
        "../../etc/passwd",
    ],
)
def test_a_wrong_request_is_not_found(server, path):
    assert ask(server, f"/{server.token}/{path}")[0] == 404


def test_odd_requests_leave_no_message(server, capfd):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 404 ")
    series = json.loads(ask(server, f"/{server.token}/series.json?run=1&name=loss&points=0")[1])
    assert len(series["step"]) == 1
    assert capfd.readouterr().err == ""


def test_a_browser_that_closes_leaves_no_message(server, capfd):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(f"GET /{server.token}/ HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed with a reset
    assert ask(server, f"/{server.token}/runs.json")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_browser_draws_every_figure_and_no_text_becomes_html(server, rendered):
    page = rendered(server.url)
    assert page.count('<svg class="chart"') == 7
    assert page.count('class="line" d="M') >= 14
    assert "Memory of the main rank, GiB" in page, "the unit of the page of one run"
    assert "2 training runs" in page
    assert "second &lt;b&gt;" in page
    assert "<img" not in page.partition("<noscript>")[0]
    assert "live, as of" in page
