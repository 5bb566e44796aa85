"""Mask e-mail addresses, public IP addresses and telephone numbers in a text.

Every pattern takes time linear in the text: it starts only at a rare character, and then reads a bounded length.
Precision matters more than recall: a match that could also be a version, a date, an ISBN or an amount is not masked.
Addresses and numbers reserved for examples (RFC 2606, RFC 5737, RFC 3849, North American Numbering Plan) are not masked
either; the default masks are among them.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.filters.network_addresses import LETTER, emails, ipv4s, ipv6s
from data_prep.filters.phone_numbers import phones
from gpt.errors import ConfigError

Kind = Literal["email", "ipv4", "ipv6", "phone"]

_PIECE, _CUT_REACH = 1 << 18, 1 << 14
# No pattern accepts these, so a text may be cut behind one.
_OUTSIDE = re.compile(rf"[^0-9{LETTER}_@＠.%+＋:()\[\]{{}}/'&#;~$*\" \u00a0\u2009\u202f\-\u2010-\u2013]")


@dataclass(frozen=True)
class PiiConfig:
    """The [pii] section of a recipe: masking of personal data, off by default.

    The default replacements are reserved for examples, so masked text still reads like text.
    """

    enabled: bool = False
    """Whether to mask personal data."""
    kinds: tuple[Kind, ...] = ("email", "ipv4", "ipv6", "phone")
    """What to find."""
    email: str = "email@example.com"
    """Replacement of e-mail addresses."""
    ipv4: str = "192.0.2.1"
    """Replacement of IPv4 addresses."""
    ipv6: str = "2001:db8::1"
    """Replacement of IPv6 addresses."""
    phone: str = "202-555-0100"
    """Replacement of telephone numbers."""
    private_ips: bool = False
    """Also mask addresses of private networks."""

    def __post_init__(self) -> None:
        if self.enabled and not self.kinds:
            raise ConfigError("pii.kinds = [] is invalid: must name what to mask. Or set pii.enabled = false")
        if len(set(self.kinds)) != len(self.kinds):
            raise ConfigError(f"pii.kinds = {list(self.kinds)} is invalid: a kind is named twice")


def mask(text: str, config: PiiConfig) -> tuple[str, dict[Kind, int]]:
    """Return (the masked text, number of masks by kind). E-mail addresses go first, telephone numbers last."""
    masked: dict[Kind, int] = {}
    parts = [_mask_piece(piece, config, masked) for piece in _pieces(text)]
    return parts[0] if len(parts) == 1 else "".join(parts), masked


def _pieces(text: str) -> Iterator[str]:
    """Divide the text into pieces of about _PIECE characters, so that the matches in one need little memory.

    Cut after a line. If no line ends within _CUT_REACH, cut after a character that no kind contains, else anywhere.
    """
    start = 0
    while len(text) - start > _PIECE + _CUT_REACH:
        earliest, latest = start + _PIECE, start + _PIECE + _CUT_REACH
        stop = text.find("\n", earliest, latest) + 1
        if not stop:
            found = _OUTSIDE.search(text, earliest, latest)
            stop = found.end() if found else latest
        yield text[start:stop]
        start = stop
    yield text[start:]


def _mask_piece(text: str, config: PiiConfig, masked: dict[Kind, int]) -> str:
    for kind, find in (("email", emails), ("ipv6", ipv6s), ("ipv4", ipv4s), ("phone", phones)):
        if kind in config.kinds:
            spans = find(text, config.private_ips)
            if spans:
                masked[kind] = masked.get(kind, 0) + len(spans)
                text = _replace(text, spans, getattr(config, kind))
    return text


def _replace(text: str, spans: list[tuple[int, int]], replacement: str) -> str:
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return replacement.join(text[end:start] for end, start in zip(ends, starts, strict=True))


def mask_shard(config: PiiConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (shard, trace) with the same documents; only failed ones are dropped.

    Facts: `masked`, number of masks by kind, and `documents`, number of documents with a mask.
    """
    total: Counter[Kind] = Counter()
    n_documents = 0
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine("pii", inputs, outputs) as quarantine,
    ):
        tally = Tally("pii", trace)

        def masked_text(document: Document) -> tuple[int, str, dict[Kind, int]]:
            return document.n_bytes, *mask(document.text, config)

        for document, (n_bytes, text, masked) in quarantine.each(read_shard(inputs[0]), masked_text, tally):
            after = Document(document.id, text, document.metadata) if masked else document
            total.update(masked)
            n_documents += bool(masked)
            tally.keep(n_bytes, after.n_bytes)
            write(after)
    return TaskResult(
        [tally.counts()], {"masked": {kind: total[kind] for kind in config.kinds}, "documents": n_documents}
    )


PII = Stage("pii", mask_shard)
