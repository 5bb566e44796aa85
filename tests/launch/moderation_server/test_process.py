"""The server as a process: it stops without losing a request."""

import http.client
import json
import signal
import time
from pathlib import Path

import pytest
from served import in_threads, served

pytest.importorskip("aiohttp", reason="aiohttp is not installed; it comes with the extra 'serve'")
PROGRAM = Path(__file__).parents[1] / "rule_server.py"


def test_sigterm_answers_what_was_accepted_and_takes_nothing_new():
    with served([PROGRAM, 0, json.dumps({"pause_s": 0.3, "max_batch_bytes": 8})]) as server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        server.ask("/health", connection=kept)

        def work(number):
            if number < 8:
                return server.ask("/v1/moderations", {"input": "aaab"})[0]
            time.sleep(0.4)  # all eight wait in the queue by now
            server.process.send_signal(signal.SIGTERM)
            return None

        assert in_threads(9, work)[:8] == [200] * 8
        status, out, _ = server.stop()
        assert status == 0
        assert "stopping" in out
        assert "8 requests answered" in out
