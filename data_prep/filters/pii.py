"""Mask e-mail addresses, public IP addresses and telephone numbers in a text.

Every pattern takes time linear in the text: it starts only at a rare character, and then reads a bounded length
(RFC 5321: 64 characters before the @, 63 per label; E.164: 15 digits). Precision goes before recall: a match that could
also be a version, a date, an ISBN or an amount is not masked. The addresses and numbers that RFC 2606, RFC 5737, RFC
3849 and the North American Numbering Plan reserve for examples are not masked either; the default masks are among them.
"""

import ipaddress
import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.documents.counts import Tally
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError

Kind = Literal["email", "ipv4", "ipv6", "phone"]

# Each pattern begins with a character or a small set, which `re` finds quickly, and only then looks back.
_AT = re.compile(
    r"@((?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}(?:xn--[A-Za-z0-9\-]{2,59}|[A-Za-z]{2,24}))"
    r"(?![A-Za-z0-9_])"
)
_LOCAL_PART = string.ascii_letters + string.digits + "_.%+-"
_MAX_LOCAL_PART = 64
_NOT_A_DOMAIN = re.compile(  # reserved for examples, or the end of a file name such as icon@2x.png
    r"(?:\bexample\.(?:com|net|org|edu)|\.(?:example|invalid|test|localhost|png|jpe?g|gif|svg|webp|css|js|html?|php|pdf"
    r"|txt|zip))$",
    re.IGNORECASE,
)

_IPV4 = re.compile(
    r"[0-9](?<![0-9A-Za-z_.].)(?<![A-Za-z][\-/].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9]|-[A-Za-z])"
)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:version|ver|v|release|rev|revision|build|firmware|driver|patch|update|section|sec|chapter|clause|rule|item"
    r"|figure|fig|table|appendix|article|step)|§)s?$",
    re.IGNORECASE,
)
_VERSION_REACH = 16  # characters before an address in which to search for such a word
_VERSION_PART = 32  # four numbers all below this are far more often a version or a heading than an address
_SPECIAL_BLOCKS = {0, 10, 100, 127, 169, 172, 192, 198, 203, *range(224, 256)}  # first numbers to check with ipaddress
_PRIVATE_IPV4 = tuple(
    ipaddress.IPv4Network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10")
)

_IPV6 = re.compile(
    r"[23Ff](?<![0-9A-Za-z:.].)[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:]|\.[0-9])"
)
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")  # all addresses assigned so far
_PRIVATE_IPV6 = (ipaddress.IPv6Network("fc00::/7"), ipaddress.IPv6Network("fe80::/10"))
_MIN_IPV6_GROUPS = 3  # written groups; examples have fewer, and headings end in "2000::"

_DASH = r"\-\u2010-\u2013"
_SPACE = r" \u00a0\u2009\u202f"
_COUNTRY = (  # the ITU's list of assigned codes
    "7|2(?:0|7|1[12368]|[2346][0-9]|5[0-8]|9[01789])|3(?:[0-469]|[57][0-9]|8[0-35-79])|4(?:[013-9]|2[013])"
    "|5(?:[1-8]|[09][0-9])|6(?:[0-6]|7[02-9]|8[0-35-9]|9[0-2])|8(?:[1246]|0[08]|5[02356]|7[08]|8[0-3689])"
    "|9(?:[0-58]|6[0-8]|7[0-79]|9[2-689])"
)
_SEPARATOR = rf"(?:[{_SPACE}./{_DASH}]|[{_SPACE}][/{_DASH}][{_SPACE}])?"
_IN_BRACKETS = rf"(?:[{_SPACE}.{_DASH}]?\([0-9]{{1,5}}\))?"  # +49 (0)30
_INTERNATIONAL = re.compile(
    rf"\+(?<![0-9A-Za-z_+~].)"
    rf"(?:1(?:{_SEPARATOR}[0-9]{{3}}|[{_SPACE}.{_DASH}]?\([0-9]{{3}}\)){_SEPARATOR}[0-9]{{3}}{_SEPARATOR}[0-9]{{4}}"
    rf"|(?:{_COUNTRY}){_IN_BRACKETS}(?:{_SEPARATOR}[0-9]){{4,13}}+)(?![0-9])"
)
_SIGNED = re.compile(r"\+[0-9]+(?:\.[0-9]+)?|\+[0-9]{1,3}(?:\.[0-9]{3})+")  # 1.000 is a thousand in much of Europe
_PIECE, _CUT_REACH = 1 << 18, 1 << 14
_OUTSIDE = re.compile(rf"[^0-9A-Za-z_@.%+:()/{_SPACE}{_DASH}]")
_AREA = rf"(?:\([2-9][0-9]{{2}}\)[{_SPACE}.{_DASH}]?|[2-9][0-9]{{2}}[.{_DASH}])"
_NORTH_AMERICAN = re.compile(
    rf"[(1-9](?<![0-9A-Za-z_+./{_DASH}].)"
    rf"(?:(?<=\()[2-9][0-9]{{2}}\)[{_SPACE}.{_DASH}]?|(?<=[2-9])[0-9]{{2}}[.{_DASH}]|(?<=1)[{_SPACE}.{_DASH}]{_AREA})"
    rf"[2-9][0-9]{{2}}[{_SPACE}.{_DASH}][0-9]{{4}}(?![0-9_]|[./{_DASH}][0-9])"
)


@dataclass(frozen=True)
class PiiConfig:
    """Section [pii]: what to mask, and with what; off by default.

    `kinds`: what to find. `email`, `ipv4`, `ipv6` and `phone` are the replacements. Their defaults are reserved for
    examples, so masked text still reads like text. `private_ips`: also mask addresses of private networks.
    """

    enabled: bool = False
    kinds: tuple[Kind, ...] = ("email", "ipv4", "ipv6", "phone")
    email: str = "email@example.com"
    ipv4: str = "192.0.2.1"
    ipv6: str = "2001:db8::1"
    phone: str = "202-555-0100"
    private_ips: bool = False

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
    for kind, find in (("email", _emails), ("ipv6", _ipv6s), ("ipv4", _ipv4s), ("phone", _phones)):
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


def _emails(text: str, _: bool) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for match in _AT.finditer(text):
        earliest = spans[-1][1] if spans else 0
        before = text[max(match.start() - _MAX_LOCAL_PART - 1, earliest) : match.start()]
        local = before[len(before.rstrip(_LOCAL_PART)) :].lstrip(".%+-")
        if 0 < len(local) <= _MAX_LOCAL_PART and not _NOT_A_DOMAIN.search(match[1]):
            spans.append((match.start() - len(local), match.end()))
    return spans


def _ipv4s(text: str, private: bool) -> list[tuple[int, int]]:
    return [match.span() for match in _IPV4.finditer(text) if _is_ipv4(match, private)]


def _is_ipv4(match: re.Match[str], private: bool) -> bool:
    parts = match[0].split(".")
    numbers = [int(part) for part in parts]
    if max(numbers) > 255 or any(part[0] == "0" and part != "0" for part in parts):
        return False
    if numbers[0] not in _SPECIAL_BLOCKS:
        public = max(numbers) >= _VERSION_PART
    else:
        address = ipaddress.IPv4Address(match[0])
        public = address.is_global and not address.is_multicast and max(numbers) >= _VERSION_PART
        public = public or (private and any(address in block for block in _PRIVATE_IPV4))
    before = match.string[max(match.start() - _VERSION_REACH, 0) : match.start()].rstrip(" \t\n.:#(")
    return public and not (before and (before[-1].isalpha() or before[-1] == "§") and _VERSION_BEFORE.search(before))


def _ipv6s(text: str, private: bool) -> list[tuple[int, int]]:
    return [match.span() for match in _IPV6.finditer(text) if _is_ipv6(match[0], private)]


def _is_ipv6(written: str, private: bool) -> bool:
    try:
        address = ipaddress.IPv6Address(written)
    except ValueError:  # for example a date with a time of day
        return False
    if private and any(address in block for block in _PRIVATE_IPV6):
        return True
    n_groups = sum(bool(group) for group in written.split(":"))
    return address in _PUBLIC_IPV6 and address.is_global and n_groups >= _MIN_IPV6_GROUPS


def _phones(text: str, _: bool) -> list[tuple[int, int]]:
    found = [match.span() for match in _INTERNATIONAL.finditer(text) if _is_international(match[0])]
    found += [match.span() for match in _NORTH_AMERICAN.finditer(text) if _is_north_american(match[0])]
    spans: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if not spans or start >= spans[-1][1]:  # the second pattern also matches inside +1 (415) ...
            spans.append((start, end))
    return spans


def _is_international(number: str) -> bool:
    groups = re.findall("[0-9]+", number)
    digits = "".join(groups)
    if not 8 <= len(digits) <= 15:
        return False
    if digits[0] == "1" and not _is_assigned(digits[1:]):
        return False
    if len(groups) == 1:
        return 10 <= len(digits) <= 13  # a shorter or longer one is a signed number or a time
    if sum(len(group) == 1 for group in groups[1:]) > 2:
        return False  # a row of single digits
    return not _SIGNED.fullmatch(number)


def _is_north_american(number: str) -> bool:
    if "(" not in number and number[-9] != number[-5]:
        return False  # two different separators
    return _is_assigned(re.sub("[^0-9]", "", number)[-10:])


def _is_assigned(number: str) -> bool:
    """Return whether the North American Numbering Plan can assign these 10 digits. It excludes 911 and 555-0100."""
    area, exchange, line = number[:3], number[3:6], number[6:]
    if area[0] in "01" or area[1] == "9" or area[1:] == "11" or area in ("200", "300", "400", "600"):
        return False
    return exchange[0] not in "01" and exchange[1:] != "11" and not (exchange == "555" and line.startswith("01"))


def mask_shard(config: PiiConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (shard, trace) with the same documents, none dropped.

    Facts: `masked`, number of masks by kind, and `documents`, number of documents with a mask.
    """
    total: Counter[Kind] = Counter()
    n_documents = 0
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tally = Tally("pii", trace)
        for document in read_shard(inputs[0]):
            text, masked = mask(document.text, config)
            after = Document(document.id, text, document.metadata) if masked else document
            total.update(masked)
            n_documents += bool(masked)
            tally.keep(document.n_bytes, after.n_bytes)
            write(after)
    return TaskResult(
        [tally.counts()], {"masked": {kind: total[kind] for kind in config.kinds}, "documents": n_documents}
    )


PII = Stage("pii", mask_shard)
