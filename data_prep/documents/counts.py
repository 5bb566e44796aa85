"""Count what a step does to its documents: in, out, dropped by reason. The final report shows these numbers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from data_prep.documents.traces import Drop, Trace


@dataclass(frozen=True)
class Counts:
    """Documents and bytes of one step; the object cannot be made unless `in = out + sum of dropped`.

    Bytes are UTF-8 text, or a record's content where there is no text yet. `dropped` maps a reason to a number of
    documents. `sizes` is a histogram of the documents that came out: bits of the length in bytes to documents.
    """

    step: str
    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lost = self.documents_in - self.documents_out - sum(self.dropped.values())
        assert lost == 0, f"step '{self.step}' cannot account for {lost} of its {self.documents_in} documents"

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values; `Counts(**value)` reads them back."""
        return {
            "step": self.step,
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "dropped": dict(sorted(self.dropped.items())),
            "sizes": dict(sorted(self.sizes.items(), key=lambda item: int(item[0]))),
        }


class Tally:
    """Counts one step while it runs, with one `keep` or `drop` per document. Drops also go to `trace`, if given."""

    def __init__(self, step: str, trace: Trace | None = None) -> None:
        self.step = step
        self._trace = trace
        self._documents_in = self._documents_out = self._bytes_in = self._bytes_out = 0
        self._dropped: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()

    def keep(self, bytes_in: int, bytes_out: int) -> None:
        """Count a document that came in with `bytes_in` and stays with `bytes_out`."""
        self._documents_in += 1
        self._documents_out += 1
        self._bytes_in += bytes_in
        self._bytes_out += bytes_out
        self._sizes[bytes_out.bit_length()] += 1

    def drop(self, reason: str, bytes_in: int, document_id: str = "", *, detail: str = "") -> None:
        """Count a document of `bytes_in` that is dropped; `detail` makes the reason precise."""
        self._documents_in += 1
        self._bytes_in += bytes_in
        self._dropped[reason] += 1
        if self._trace is not None:
            self._trace.add(Drop(document_id, self.step, reason, bytes_in, detail))

    def counts(self) -> Counts:
        """The totals so far."""
        sizes = {str(bits): n for bits, n in self._sizes.items()}  # text, as in JSON
        numbers = (self._documents_in, self._documents_out, self._bytes_in, self._bytes_out)
        return Counts(self.step, *numbers, dict(self._dropped), sizes)


def total(counts: Iterable[Counts]) -> list[Counts]:
    """Sum counts over shards: one entry a step, in the order in which steps first appear."""
    sums: dict[str, Counts] = {}
    for c in counts:
        before = sums.get(c.step, Counts(c.step))
        sums[c.step] = Counts(
            c.step,
            before.documents_in + c.documents_in,
            before.documents_out + c.documents_out,
            before.bytes_in + c.bytes_in,
            before.bytes_out + c.bytes_out,
            dict(Counter(before.dropped) + Counter(c.dropped)),
            dict(Counter(before.sizes) + Counter(c.sizes)),
        )
    return list(sums.values())
