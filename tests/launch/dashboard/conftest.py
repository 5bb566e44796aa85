"""What the tests of the page share."""

import shutil
import subprocess
import threading
from contextlib import contextmanager

import pytest

from launch.dashboard.server import Dashboard

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


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


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """rendered(address): the page's HTML after its scripts have run in a browser. Skips where there is none."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)

    def render(address):
        if browser is None:
            pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
        profile = tmp_path_factory.mktemp("browser")
        words = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--virtual-time-budget=20000",
        ]
        command = [browser, *words, f"--user-data-dir={profile}", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        return done.stdout

    return render
