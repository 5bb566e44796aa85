"""The work of all labellers on some texts: who gets which text next, answers, undo, progress."""

import hashlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import Taxonomy
from launch.labelling.answers import AnswerFile, LabelAnswer
from launch.labelling.keys import MAX_GRADE
from launch.labelling.texts import TextToLabel

LEASE_S = 600.0  # a text that one window shows is not given to another for this time
MAX_SECONDS = 600.0  # of one answer; a longer time is a break
RECENT = 50  # answers whose median time predicts the time left


class WrongAnswerError(ValueError):
    """A request that the page does not send: it has an unknown text, category or value."""


class AlreadyAnsweredError(Exception):
    """Another window has answered this text meanwhile."""


@dataclass(frozen=True)
class _Lease:
    labeller: str
    window: str
    until: float


@dataclass
class LabellingTask:
    """The texts, the answers and the leases of windows. Every method may be called from any thread.

    `overlap`: share of the texts that every labeller gets; each of the others goes to whoever comes first.
    `others`: ids of texts that somebody who is not in the file has labelled, as the input says.
    """

    texts: Sequence[TextToLabel]
    taxonomy: Taxonomy
    file: AnswerFile
    overlap: float = 1.0
    others: Mapping[str, frozenset[str]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id = {text.id: text for text in self.texts}
        self._shared = {text.id for text in self.texts if _share(text.id) < self.overlap}
        self._leases: dict[tuple[str, str], _Lease] = {}  # by text and labeller
        self._windows: dict[tuple[str, str], str] = {}  # the window that gave an answer, by labeller and text
        self._again: set[tuple[str, str]] = set()  # skipped texts to ask once more, by labeller and text

    def state(self, labeller: str, window: str) -> dict[str, Any]:
        """The next text of a window and the labeller's progress. OSError, ConfigError: as AnswerFile.locked."""
        with self._opened():
            return self._state(labeller, window)

    def answer(self, labeller: str, window: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write an answer to the disk, and return the state after it.

        WrongAnswerError, AlreadyAnsweredError: nothing is written. The same answer twice is written once, so that a
        page may send it again if it does not know whether it arrived.
        """
        text, record = self._record(labeller, given)
        with self._opened() as file:
            before = self._answers(labeller).get(text.id)
            if before is not None and (labeller, text.id) not in self._again:
                if (before.labels, before.severity) != (record["labels"], record.get("severity", {})):
                    raise AlreadyAnsweredError
                return self._state(labeller, window)
            self.file.append(file, record)
            self._windows[labeller, text.id] = window
            self._again.discard((labeller, text.id))
            self._leases.pop((text.id, labeller), None)
            return self._state(labeller, window)

    def undo(self, labeller: str, window: str) -> dict[str, Any]:
        """Take back the newest answer of this window, else of an earlier session; give its text with its labels."""
        with self._opened() as file:
            mine = [one for one in reversed(self._answers(labeller).values()) if one.text_id in self._by_id]
            owners = [(self._windows.get((labeller, one.text_id)), one) for one in mine]
            last = next((one for owner, one in owners if owner == window), None)
            last = last or next((one for owner, one in owners if owner is None), None)
            if last is None:
                return self._state(labeller, window)
            text = self._by_id[last.text_id]
            self.file.append(file, {**self._head(text, labeller), "labels": {}, "undone": True})
            for key in [
                key for key, lease in self._leases.items() if (lease.labeller, lease.window) == (labeller, window)
            ]:
                del self._leases[key]
            self._lease(text, labeller, window)
            state = self._state(labeller, window)
            state["item"] |= {"labels": last.labels, "severity": last.severity}
            return state

    def ask_skipped(self, labeller: str, window: str) -> dict[str, Any]:
        """Ask the skipped texts once more."""
        with self._opened():
            skipped = (one for one in self._answers(labeller).values() if one.is_skipped)
            self._again |= {(labeller, one.text_id) for one in skipped if one.text_id in self._by_id}
            return self._state(labeller, window)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        with self._lock, self.file.locked() as file:
            yield file

    def _answers(self, labeller: str) -> dict[str, LabelAnswer]:
        return self.file.by_labeller.setdefault(labeller, {})

    def _state(self, labeller: str, window: str) -> dict[str, Any]:
        mine, left = self._answers(labeller), self._left(labeller)
        # a text that another window shows comes last: that window may be closed; if not, the second answer is refused
        item = min(left, key=lambda text: self._claim(text, labeller, window), default=None)
        if item is not None:
            self._lease(item, labeller, window)
        answered = [one for one in mine.values() if one.text_id in self._by_id]
        waiting = sum((labeller, one.text_id) in self._again for one in answered)
        times = [min(one.seconds, MAX_SECONDS) for one in answered[-RECENT:] if one.seconds is not None]
        return {
            "item": None if item is None else {"id": item.id, "text": item.text},
            "done": len(answered) - waiting,
            "left": len(left),
            "skipped": sum(one.is_skipped for one in answered) - waiting,
            "seconds_left": len(left) * statistics.median(times) if times else None,
        }

    def _left(self, labeller: str) -> list[TextToLabel]:
        """The texts that a labeller still gets, in order."""
        mine = self._answers(labeller)
        taken = {id_ for name, found in self.file.by_labeller.items() if name != labeller
                 for id_, answer in found.items() if not answer.is_skipped}  # fmt: skip
        taken |= {id_ for name, found in self.others.items() if name != labeller for id_ in found}
        return [
            text
            for text in self.texts
            if (text.id not in mine or (labeller, text.id) in self._again)
            and (text.id in self._shared or text.id not in taken)
        ]

    def _claim(self, text: TextToLabel, labeller: str, window: str) -> int:
        """0: this window shows the text. 2: another one does, of this labeller, or of anyone if one label is enough."""
        names = [labeller] if text.id in self._shared else [labeller, *self.file.by_labeller]
        found = [lease for name in names if (lease := self._leases.get((text.id, name))) and lease.until > self.clock()]
        is_own = [(lease.labeller, lease.window) == (labeller, window) for lease in found]
        return 1 if not found else 0 if all(is_own) else 2

    def _lease(self, text: TextToLabel, labeller: str, window: str) -> None:
        self._leases[text.id, labeller] = _Lease(labeller, window, self.clock() + LEASE_S)

    def _head(self, text: TextToLabel, labeller: str) -> dict[str, Any]:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        head = {"id": text.id, "text": text.text, "labeller": labeller, "taxonomy": self.taxonomy.label}
        return {**head, **text.fields, "time": stamp}

    def _record(self, labeller: str, given: Mapping[str, Any]) -> tuple[TextToLabel, dict[str, Any]]:
        """The line of an answer. WrongAnswerError: it names an unknown text or category, or contradicts the parents."""
        text, seconds = self._by_id.get(str(given.get("id"))), given.get("seconds")
        if text is None:
            raise WrongAnswerError("unknown text")
        record = self._head(text, labeller)
        if isinstance(seconds, int | float) and 0 <= seconds < 1e9:
            record["seconds"] = round(float(seconds), 1)
        if given.get("skipped") is True:
            return text, {**record, "labels": {}, "skipped": True}
        labels, severity = given.get("labels"), given.get("severity") or {}
        if not isinstance(labels, dict) or not isinstance(severity, dict):
            raise WrongAnswerError("labels and severity must be objects by category")
        if missing := [one for one in self.taxonomy.ids if one not in labels]:
            raise WrongAnswerError(f"the labels lack {', '.join(missing)}: give each category 0, 1 or null")
        if more := next((one for one in labels if one not in self.taxonomy.ids), None):
            raise WrongAnswerError(f"'{more[:60]}' is no category of {self.taxonomy.label}: the page may be an old one")
        if any(value not in (0, 1, None) or isinstance(value, bool) for value in labels.values()):
            raise WrongAnswerError("a label is 0, 1 or null")
        if any(
            key not in labels or type(grade) is not int or not 0 <= grade <= MAX_GRADE
            for key, grade in severity.items()
        ):
            raise WrongAnswerError(f"a severity is a whole number from 0 to {MAX_GRADE}")
        for id_, value in labels.items():
            if value == 1 and any(labels[parent] == 0 for parent in self.taxonomy.ancestors(id_)):
                raise WrongAnswerError("a category is positive, and its parent is not")
        return text, {**record, "labels": labels, **({"severity": severity} if severity else {})}


def check_labellers(names: Sequence[str]) -> None:
    """ConfigError: a name is empty, too long, has control characters, or is given twice."""
    for name in names:
        if not name.strip() or len(name) > 80 or not name.isprintable():
            raise ConfigError(f"--labeller {name!r} is invalid: a name has 1 to 80 printable characters. Use another.")
    if len(set(names)) < len(names):
        raise ConfigError(f"--labeller {' '.join(names)} is invalid: a name is given twice. Use different names.")


def _share(text_id: str) -> float:
    """A number from 0 to 1 that depends on the id only, so that all labellers share the same texts."""
    return int.from_bytes(hashlib.sha256(text_id.encode("utf-8", "replace")).digest()[:6], "big") / 2**48
