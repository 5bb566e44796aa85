"""Connections are counted, refused beyond the limit, and closed without a request; see test_app.py for the server."""

import asyncio
from contextlib import suppress

import pytest

web = pytest.importorskip("aiohttp.web", reason="aiohttp is not installed; it comes with the extra 'serve'")

from launch.moderation_server.connections import Connections  # noqa: E402


def test_connections_have_a_number_and_a_time():
    async def scenario():
        connections = Connections(2, 0.5)

        async def answer(request):
            connections.has_request(request.protocol)
            return web.Response(text="yes")

        server = web.Server(answer)
        listening = await asyncio.get_running_loop().create_server(connections.watched(server), "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        (silent, _), (asking, writer) = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asking.readuntil(b"yes")).startswith(b"HTTP/1.1 200")
        refused, _ = await asyncio.open_connection("127.0.0.1", port)
        assert (await refused.read()).startswith(b"HTTP/1.1 503")
        assert (connections.open, connections.refused) == (2, 1)
        with suppress(ConnectionError):
            assert await silent.read() == b""  # closed after half a second
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # the other one lives on
        assert (await asking.readuntil(b"yes")).startswith(b"HTTP/1.1 200")
        writer.close()
        listening.close()
        await server.shutdown(1)
        while connections.open:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scenario(), 300))
