"""Find e-mail addresses and IP addresses in a text, in time linear in the text.

Each pattern begins with a character or a small set, which `re` finds quickly, and only then looks back. RFC 5321 limits
an address to 64 characters before the @ and 63 per label.
"""

import ipaddress
import re
import string

Spans = list[tuple[int, int]]

_BEYOND_ASCII = ((0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x370, 0x3FF), (0x400, 0x52F))  # Latin, Greek, Cyrillic
LETTER = "A-Za-z" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _BEYOND_ASCII)
_LABEL = rf"[{LETTER}0-9](?:[{LETTER}0-9\-]{{0,61}}[{LETTER}0-9])?"
_TOP = rf"(?:xn--[A-Za-z0-9\-]{{2,59}}|[{LETTER}]{{2,24}})(?![A-Za-z0-9])"
_AT = re.compile(
    rf"[@＠%&](?:(?<=[@＠])|(?<=%)40|(?<=&)#64;)(?:((?:{_LABEL}\.){{1,8}}{_TOP})|\[(?:IPv6:)?[0-9A-Fa-f.:]{{2,45}}\])"
)
_DOT_WORD = r" ?[\[({] ?(?:dot|DOT|Dot) ?[\])}] ?"
_SPELLED_AT = re.compile(  # jane [at] host [dot] org
    rf"[\[({{] ?(?:at|AT|At) ?[\])}}] ?((?:{_LABEL}(?:\.|{_DOT_WORD})){{1,8}}{_TOP})"
)
_SPELLED_LOCAL = re.compile(rf"[{LETTER}0-9_.+\-]+(?:{_DOT_WORD}[{LETTER}0-9_.+\-]+){{0,3}} ?$")
_SIGNS = "_.%+-'&~$*"  # from those that RFC 5322 allows; the others are far more often around an address than in it
_LOCAL_PART = (
    string.ascii_letters
    + string.digits
    + _SIGNS
    + "".join(chr(code) for first, last in _BEYOND_ASCII for code in range(first, last + 1))
)
_MAX_LOCAL_PART = 64
_NOT_A_DOMAIN = re.compile(  # reserved for examples, or the end of a file name such as icon@2x.png
    r"(?:\bexample\.(?:com|net|org|edu)|\.(?:example|invalid|test|localhost|png|jpe?g|gif|svg|webp|css|js|html?|php|pdf"
    r"|txt|zip))$",
    re.IGNORECASE,
)

_DOT = r"(?:\.|\[\.\]|\(\.\))"  # lists of attackers write 192[.]0[.]2[.]1
_IPV4 = re.compile(
    rf"[0-9](?<![0-9A-Za-z_.].)[0-9]{{0,2}}(?:{_DOT}[0-9]{{1,3}}){{3}}(?![0-9A-Za-z_]|{_DOT}[0-9]|-[A-Za-z])"
)
_AFTER_NAME = re.compile(r"[A-Za-z][\-/]$")  # as in Chrome/85.214.13.1
_AFTER_IP = re.compile(r"(?<![A-Za-z])(?:ip|ipv4|inet|addr)[\-/]$", re.IGNORECASE)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:version|ver|v|release|rev|revision|build|firmware|driver|patch|update|section|sec|chapter|clause|rule|item"
    r"|figure|fig|table|appendix|article|step)|§)s?$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE = re.compile(
    r"(?:://|(?<![A-Za-z])(?:ip(?:v[46])?(?: ?addr(?:ess)?)?|inet6?(?: addr)?|address|addr"
    r"|nameserver|dns)"
    r"[\"']?\s?[:=]?\s?[\"'\[]?)$",
    re.IGNORECASE,
)
_PORT_OR_BLOCK = re.compile(r":[0-9]{2,5}(?![0-9:.])|/(?:[89]|[12][0-9]|3[0-2])(?![0-9/.])")
_REACH = 16  # characters before an address in which to search for such a word
_VERSION_PART = 32  # four numbers all below this are far more often a version or a heading than an address
_SPECIAL_BLOCKS = {0, 10, 100, 127, 169, 172, 192, 198, 203, *range(224, 256)}  # first numbers to check with ipaddress
_PRIVATE_IPV4 = tuple(
    ipaddress.IPv4Network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10")
)

_IPV6 = re.compile(
    r"[23Ff](?<![0-9A-Za-z.].)[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}"
    r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4})(?![0-9A-Za-z]|:[0-9A-Fa-f:]|\.[0-9])"
)
_IN_IPV6 = re.compile(r"(?:^|[0-9A-Fa-f:]):$")
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")  # all addresses assigned so far
_PRIVATE_IPV6 = (ipaddress.IPv6Network("fc00::/7"), ipaddress.IPv6Network("fe80::/10"))
_MIN_IPV6_GROUPS = 3  # written groups, unless a word says that it is an address; headings end in "2000::"


def emails(text: str, _: bool) -> Spans:
    """Spans of the e-mail addresses."""
    found = [(match, match[1]) for match in _AT.finditer(text)]
    found += [(match, match[1]) for match in _SPELLED_AT.finditer(text)]
    spans: Spans = []
    for match, domain in sorted(found, key=lambda item: item[0].start()):
        start = _local_part(text, match.start(), spans[-1][1] if spans else 0)
        if text[start] == "_" and text[match.end() : match.end() + 1] == "_":  # _emphasis_ in Markdown
            start += 1
        if start < match.start() and not (domain and _NOT_A_DOMAIN.search(domain)):
            spans.append((start, match.end()))
    return spans


def _local_part(text: str, end: int, earliest: int) -> int:
    """Return where the part before the @ at `end` starts; `end` if there is none, or if it is too long."""
    before = text[max(end - _MAX_LOCAL_PART - 2, earliest) : end]
    if text[end] in "[({":
        found = _SPELLED_LOCAL.search(before)
        return end if found is None else end - len(before) + found.start()
    if before.endswith('"'):  # "john doe"@host.org
        opening = before.rfind('"', 0, -1)
        return end if opening < 0 or "\n" in before[opening:] else end - len(before) + opening
    local = before[len(before.rstrip(_LOCAL_PART)) :].lstrip(".%+-'&$*")
    return end - len(local) if len(local) <= _MAX_LOCAL_PART else end


def ipv4s(text: str, private: bool) -> Spans:
    """Spans of the public IPv4 addresses, of `private` networks too if wanted."""
    return [match.span() for match in _IPV4.finditer(text) if _is_ipv4(match, private)]


def _is_ipv4(match: re.Match[str], private: bool) -> bool:
    parts = re.findall("[0-9]+", match[0])
    numbers = [int(part) for part in parts]
    if max(numbers) > 255 or any(part[0] == "0" and part != "0" for part in parts):
        return False
    before = match.string[max(match.start() - _REACH, 0) : match.start()]
    if before.endswith(("[.]", "(.)")) or (_AFTER_NAME.search(before) and not _AFTER_IP.search(before)):
        return False
    words = before.rstrip(" \t\n.:#(")
    if words and (words[-1].isalpha() or words[-1] == "§") and _VERSION_BEFORE.search(words):
        return False
    public = True
    if numbers[0] in _SPECIAL_BLOCKS:
        address = ipaddress.IPv4Address(".".join(parts))
        public = address.is_global and not address.is_multicast
        if private and any(address in block for block in _PRIVATE_IPV4):
            return True
    named = max(numbers) >= _VERSION_PART or "[" in match[0] or "(" in match[0]
    return public and bool(named or _ADDRESS_BEFORE.search(before) or _PORT_OR_BLOCK.match(match.string, match.end()))


def ipv6s(text: str, private: bool) -> Spans:
    """Spans of the public IPv6 addresses, of `private` networks too if wanted."""
    spans = []
    for match in _IPV6.finditer(text):
        written = match[0]
        if written.endswith(":") and not written.endswith("::"):  # "ADDRESS: unreachable"
            written = written[:-1]
        before = text[max(match.start() - _REACH, 0) : match.start()]
        named = _ADDRESS_BEFORE.search(before) is not None
        inside = _IN_IPV6.search(before) is not None and not named
        if not inside and _is_ipv6(written, private, named=named):
            spans.append((match.start(), match.start() + len(written)))
    return spans


def _is_ipv6(written: str, private: bool, *, named: bool) -> bool:
    try:
        address = ipaddress.IPv6Address(written)
    except ValueError:  # for example a date with a time of day
        return False
    if private and any(address in block for block in _PRIVATE_IPV6):
        return True
    n_groups = sum(bool(group) for group in written.split(":"))
    return address in _PUBLIC_IPV6 and address.is_global and (named or n_groups >= _MIN_IPV6_GROUPS)
