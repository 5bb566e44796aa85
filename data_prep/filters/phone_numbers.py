"""Find telephone numbers in a text, in time linear in the text.

Numbers with a + and a country code, and North American ones, are recognised by their form. A number in another national
format counts only if a word before it says so. E.164 allows 15 digits.
"""

import re

Spans = list[tuple[int, int]]

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
    rf"[+＋](?<![0-9A-Za-z_+~].)"
    rf"(?:1(?:{_SEPARATOR}[0-9]{{3}}|[{_SPACE}.{_DASH}]?\([0-9]{{3}}\)){_SEPARATOR}[0-9]{{3}}{_SEPARATOR}[0-9]{{4}}"
    rf"|(?:{_COUNTRY}){_IN_BRACKETS}(?:{_SEPARATOR}[0-9]){{4,13}}+)(?![0-9])"
)
_SIGNED = re.compile(
    r"[+＋][0-9]+(?:\.[0-9]+)?|[+＋][0-9]{1,3}(?:\.[0-9]{3})+"
)  # 1.000 is a thousand in much of Europe
_AREA = rf"(?:\([2-9][0-9]{{2}}\)[{_SPACE}.{_DASH}]?|[2-9][0-9]{{2}}[.{_DASH}])"
_NORTH_AMERICAN = re.compile(
    rf"[(1-9](?<![0-9A-Za-z_+./{_DASH}].)"
    rf"(?:(?<=\()[2-9][0-9]{{2}}\)[{_SPACE}.{_DASH}]?|(?<=[2-9])[0-9]{{2}}[.{_DASH}]|(?<=1)[{_SPACE}.{_DASH}]{_AREA})"
    rf"[2-9][0-9]{{2}}[{_SPACE}.{_DASH}][0-9]{{4}}(?![0-9_]|[./{_DASH}][0-9])"
)

_NATIONAL = re.compile(  # 7 to 15 digits in groups; a word before them is required
    rf"[(0-9](?<![0-9A-Za-z_+./{_DASH}].)(?:(?<=[(])[0-9]{{2,5}}\)|(?<=[0-9])[{_SPACE}]\([0-9]{{2,5}}\))?"
    rf"(?:[{_SPACE}./{_DASH}]?[0-9]|[{_SPACE}][/{_DASH}][{_SPACE}][0-9]){{5,14}}+(?![0-9A-Za-z_])"
)
_NUMBER = r"(?:number|num|no|nr|n°|номер)"
_WORD = re.compile(
    r"(?:(?:(?<![A-Za-z])(?:telephones?|tel[eé]fonos?|t[eé]l[eé]phone|tel|tél|tlf|tfno|telefone?|phone|ph|fon|fax|hotline"
    r"|whats ?app|viber|call(?: us)? (?:at|on))|тел(?:ефон)?|моб|факс|电话|電話|手机|手機|传真|전화)"
    rf"[.:]?[ ]?{_NUMBER}?[ ]?[.:]{{0,2}}[ ]?"
    # These are ordinary words too, so a sign or a word for a number must follow.
    rf"|(?<![A-Za-z])(?:mobile?|mob|cell|handy|sms|call(?: us)?)"
    rf"(?:[ ]?[.:][ ]?{_NUMBER}?|[ ]{_NUMBER})[ ]?[.:]{{0,2}}[ ]?)$",
    re.IGNORECASE,
)
_REACH = 24  # characters before a number in which to search for such a word
_LOCAL = re.compile(r"[2-9][0-9]{2}-[0-9]{4}")
_DATE = re.compile(r"(?:19|20)[0-9]{2}([./\-])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([./\-])[0-9]{1,2}\2(?:19|20)[0-9]{2}")
_YEARS = re.compile(r"[0-9]{0,3} ?(?:(?:19|20)[0-9]{2}[ \-/]?){2,}")
_BRACKETED = re.compile(  # (030) 901820
    rf"\((?<![0-9A-Za-z_)].)0[1-9][0-9]{{1,3}}\)[{_SPACE}]?[0-9]{{3,4}}[{_SPACE}{_DASH}]?[0-9]{{3,4}}(?![0-9A-Za-z_]|[.,/{_DASH}][0-9])"
)
_DIALLED = re.compile(  # 0049 30 901820, as dialled from most countries
    rf"0(?<![0-9A-Za-z_+./,{_DASH}].)(?<![0-9][{_SPACE}].)0[{_SPACE}]?(?:{_COUNTRY})[{_SPACE}](?:\(0\))?[0-9]{{2,4}}(?:[{_SPACE}{_DASH}][0-9]{{2,8}}){{1,4}}"
    rf"(?![0-9A-Za-z_]|[.,/{_DASH}][0-9])"
)


def phones(text: str, _: bool) -> Spans:
    """Spans of the telephone numbers."""
    found = [match.span() for match in _INTERNATIONAL.finditer(text) if _is_international(match[0])]
    found += [match.span() for match in _NORTH_AMERICAN.finditer(text) if _is_north_american(match[0])]
    found += [match.span() for match in _NATIONAL.finditer(text) if _is_named(match)]
    found += [match.span() for match in _BRACKETED.finditer(text) if _has_word(match)]
    found += [match.span() for match in _DIALLED.finditer(text) if 10 <= sum(map(str.isdigit, match[0])) <= 17]
    spans: Spans = []
    for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if not spans or start >= spans[-1][1]:  # several patterns match inside +1 (415) ...
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


def _is_named(match: re.Match[str]) -> bool:
    """Return whether a word before the number says that it is a telephone number, and nothing contradicts it."""
    groups = re.findall("[0-9]+", match[0])
    n_digits = sum(map(len, groups))
    short = match[0][0] in "(0" or _LOCAL.fullmatch(match[0])  # with fewer digits, it may be any row of numbers
    if not (7 if short else 9) <= n_digits <= 15 or sum(len(group) == 1 for group in groups) > 2:
        return False
    if _DATE.fullmatch(match[0]) or _YEARS.fullmatch(match[0]):
        return False
    if n_digits == 10 and "".join(groups)[3:8] == "55501":  # reserved for examples
        return False
    return _has_word(match)


def _has_word(match: re.Match[str]) -> bool:
    return _WORD.search(match.string, max(match.start() - _REACH, 0), match.start()) is not None
