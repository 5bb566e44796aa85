"""The server of local pages limits connections and the time of a request, and answers only this host and its token."""

import http.client
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from launch.local_pages.server import MAX_CONNECTIONS, LocalHandler, LocalServer, is_token

HEAD = b"POST /token/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


class Handler(LocalHandler):
    timeout = 1.0

    def do_GET(self):
        token, name, query = self.asked()
        self.send(f"{is_token(token, 'token')} {name} {query}".encode(), "text/plain")

    def do_POST(self):
        self.send(self.read_body(int(self.headers["Content-Length"])), "text/plain")


@contextmanager
def serving():
    with LocalServer(Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server():
    with serving() as found:
        yield found


def seconds_until_closed(server, *, first=b"", slowly=b""):
    """How long the server keeps a connection that sends some bytes at once and others one by one."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=0.2) as connection:
        connection.sendall(first)
        for number in range(300):
            try:
                if slowly:
                    connection.sendall(slowly[number % len(slowly) :][:1])
                if connection.recv(1) == b"":
                    return time.monotonic() - began
            except TimeoutError:
                continue
            except ConnectionError:
                return time.monotonic() - began
    pytest.fail("the connection stays open for a minute")


@pytest.mark.parametrize(
    "sent", [{}, {"slowly": b"GET /x"}, {"first": HEAD, "slowly": b"ab"}, {"first": b"GET / HTTP/1.1\r\n"}]
)
def test_a_request_that_does_not_arrive_in_time_ends_its_connection(server, sent):
    assert seconds_until_closed(server, **sent) < 30


def test_a_connection_can_be_used_again_within_the_time(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    for number in range(4):
        time.sleep(0.4)
        connection.request("GET", f"/token/{number}?a=b")
        assert connection.getresponse().read() == f"True {number} a=b".encode()
    connection.request("POST", "/token/", body=b"x" * 100)
    assert connection.getresponse().read() == b"x" * 100
    connection.close()


def test_hosts_and_tokens(server):
    for host, token, answer in (
        ("localhost:9000", "token", b"True"),  # a forwarded port
        ("127.0.0.1.example.org", "token", b"False"),
        ("example.org", "token", b"False"),
        ("127.0.0.1", "toke", b"False"),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request("GET", f"/{token}/", headers={"Host": host})
        assert connection.getresponse().read().split()[0] == answer
        connection.close()


def test_silent_connections_have_a_limit_and_free_it_again():
    with serving() as server:
        address = ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address, timeout=60) for _ in range(MAX_CONNECTIONS)]
        with socket.create_connection(address, timeout=60) as one_more:
            assert one_more.recv(10) == b""
        assert [one.recv(1) for one in idle] == [b""] * MAX_CONNECTIONS  # each was closed by the server
        connection = http.client.HTTPConnection(*address, timeout=60)
        connection.request("GET", "/token/")
        assert connection.getresponse().status == 200
        connection.close()
