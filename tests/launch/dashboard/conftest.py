"""What the tests of the page share."""

import threading
from contextlib import contextmanager

import pytest

from launch.dashboard.server import Dashboard


@pytest.fixture(scope="session")
def serving():
    """serving(directories) as a context: a server that answers."""

    @contextmanager
    def serve(directories):
        with Dashboard(directories) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join(timeout=60)

    return serve
