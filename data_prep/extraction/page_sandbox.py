"""Extract pages in a child process with limits of time and memory, so that no page can harm or stop the worker.

One child serves all pages of a task until a page ends it; then a new one takes over. The result for a page does not
depend on the machine's load, because the time limit counts processor time. It does not depend on earlier pages either:
a page that fails in a used child is tried once more in a new one.
"""

import dataclasses
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.documents.records import Page
from data_prep.execution.child_frames import FAILED, OUT_OF_MEMORY, SIZE, TEXT
from data_prep.execution.child_process import Child
from data_prep.extraction.page_child import PAGE
from data_prep.extraction.page_text import ExtractConfig

OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # a page never causes these
_ATTEMPTS = 4  # for a page whose child is killed from outside
_WALL_FACTOR = 12  # a child is stuck after this many seconds on the clock for each second of processor time


@dataclass(frozen=True)
class Failure:
    """Why a page gives no text: `timed_out`, `out_of_memory`, `crashed`, `killed` (from outside) or `failed`."""

    reason: str
    detail: str


class PageSandbox:
    """One child process and its limits.

    with PageSandbox(config) as sandbox:
        sandbox.submit(pages)  # returns when the child has them
        texts = sandbox.collect()  # in the order of the pages
    """

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config
        self._child: Child | None = None
        self._n_done = 0  # pages that this child has finished
        self._pages: list[Page] = []

    def __enter__(self) -> "PageSandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self._replace()

    @property
    def child_pid(self) -> int:
        """Process id of the present child; there is one between `submit` and `collect`."""
        assert self._child is not None
        return self._child.pid

    def submit(self, pages: Sequence[Page]) -> None:
        """Send pages to the child and return; it works on them meanwhile."""
        assert not self._pages, "collect() comes first"
        self._pages = list(pages)
        self._send(self._pages)

    def collect(self) -> list[str | Failure]:
        """Return the text of each submitted page, or why there is none."""
        results: list[str | Failure] = []
        attempts = 0
        while len(results) < len(self._pages):
            was_new, attempts = self._n_done == 0, attempts + 1
            outcome = self._next_outcome()
            self._n_done += 1
            if isinstance(outcome, str) or _is_final(outcome, was_new=was_new, attempts=attempts):
                results.append(outcome)
                attempts = 0
            else:
                self._replace()
            if self._child is None:
                self._send(self._pages[len(results) :])
        self._pages = []
        return results

    def _next_outcome(self) -> str | Failure:
        assert self._child is not None
        reply = self._child.receive(self._config.max_page_cpu_s * _WALL_FACTOR)
        if reply is None:
            return self._post_mortem()
        kind, text = reply
        if kind == TEXT:
            return text
        if kind == OUT_OF_MEMORY:
            return self._out_of_memory()
        return Failure("failed" if kind == FAILED else "crashed", text)

    def _post_mortem(self) -> Failure:
        """Find out from the child's end why its page has no text."""
        assert self._child is not None
        ending, self._child = self._child.end(), None
        limit_s = self._config.max_page_cpu_s
        if ending.stuck:
            return Failure("timed_out", f"no answer in {limit_s * _WALL_FACTOR:g} s")
        if ending.code == -signal.SIGPROF:
            return Failure("timed_out", f"more than {limit_s:g} s of processor time")
        if -ending.code in OUTSIDE_SIGNALS:
            return Failure("killed", signal.Signals(-ending.code).name)
        if (
            ending.max_rss_bytes > self._config.max_page_memory_bytes // 2
        ):  # libraries abort when they get no more memory
            return self._out_of_memory()
        return Failure("crashed", signal.Signals(-ending.code).name if ending.code < 0 else f"status {ending.code}")

    def _out_of_memory(self) -> Failure:
        return Failure("out_of_memory", f"more than {self._config.max_page_memory_bytes} bytes")

    def _replace(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _send(self, pages: Sequence[Page]) -> None:
        if not pages:
            return
        if self._child is None:
            self._child, self._n_done = Child("data_prep.extraction.page_child", dataclasses.asdict(self._config)), 0
        self._child.send(_frames(pages))


def _frames(pages: Sequence[Page]) -> Iterator[bytes]:
    yield SIZE.pack(len(pages))
    for page in pages:
        facts = json.dumps([page.charset, page.is_html]).encode()
        yield PAGE.pack(len(facts), len(page.content)) + facts
        yield page.content


def _is_final(failure: Failure, *, was_new: bool, attempts: int) -> bool:
    """Return whether a new child would give the same result."""
    if failure.reason == "killed":
        return attempts == _ATTEMPTS
    return was_new or failure.reason == "timed_out"
