"""For tests: a real headless browser that presses keys, by the Chrome DevTools protocol over a pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
)
NAMED_KEYS = {
    "Enter": 13,
    "Backspace": 8,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "Escape": 27,
    " ": 32,
}


def installed():
    """The path of a browser, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def browsing(profile):
    """A browser without a page; `profile` is an empty folder."""
    to_read, to_browser = os.pipe()
    from_browser, to_write = os.pipe()
    words = [installed(), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    redirected = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'  # the protocol's two descriptors
    process = subprocess.Popen(
        ["bash", "-c", redirected, *words], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(to_write)
    browser = Browser(process, to_browser, from_browser)
    try:
        yield browser
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)


class Browser:
    """Commands to a browser. `page(address)` opens a page."""

    def __init__(self, process, to_browser, from_browser):
        self.process = process
        self._to, self._from, self._number, self._data = to_browser, from_browser, 0, b""
        self.events = []

    def call(self, method, session=None, timeout=120, **params):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            found = self._receive(end)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)
        raise TimeoutError(method)

    def page(self, address, *, width=1100, height=800, dark=False):
        """Open an address in a new tab and return it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, target, session).at(address, width=width, height=height, dark=dark)

    def kill(self):
        """End the browser at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def _receive(self, end):
        while b"\0" not in self._data:
            if not select.select([self._from], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._from, 1 << 20)
            assert data, "the browser has ended"
            self._data += data
        message, _, self._data = self._data.partition(b"\0")
        return json.loads(message)


class Tab:
    """One page of a browser."""

    def __init__(self, browser, target, session):
        self.browser, self.target, self.session = browser, target, session

    def call(self, method, **params):
        return self.browser.call(method, session=self.session, **params)

    def at(self, address, *, width, height, dark):
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.size(width, height, dark=dark)
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return self

    def size(self, width, height, *, dark=False):
        is_phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression):
        """The value of a JavaScript expression, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression, *, timeout=60):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + timeout
        while not self.value(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.01)

    def press(self, key, *, shift=False):
        """Press and release a key: a character, or a name of NAMED_KEYS."""
        code = NAMED_KEYS.get(key, ord(key[0].upper()))
        named = {"key": key.upper() if shift and len(key) == 1 else key, "windowsVirtualKeyCode": code}
        named |= {"code": f"Key{key.upper()}"} if key.isalpha() and len(key) == 1 else {}
        named |= {"modifiers": 8} if shift else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def reload(self):
        self.value("window.wasHere = true")
        self.call("Page.reload")
        self.until("!window.wasHere && document.readyState === 'complete'")

    def picture(self, path, *, whole=False):
        """Write a PNG of the page; `whole`: with what is below the screen."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
