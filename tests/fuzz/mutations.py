"""Damage the files of a folder by a seed: flipped bits, cuts, splices, and JSON or TOML with hostile values.

The same seed and the same files give the same damage. Each change is described in a few words.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = "\x00deep:"  # a text that stands for brackets nested too deeply for json.dumps
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 10**6, 10**9, 2**31, 2**53 + 1, 2**61, 2**63, 2**64, 10**400, -(10**9)),
    *(0.0, -0.0, 1e-320, 0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "0", "-1", "true", "\x1b]0;owned\x07\x1b[2J", "a\nb\r", "\ud800", "\u202e", "x" * 200_000, "é" * 300),
    *("../../../etc/passwd", "/dev/zero", "/", ".", "a/b", "model"),
    *([], {}, [[]], [None], [1], {"a": {}}, [0] * 1000, [{}] * 100, f"{DEEP}100", f"{DEEP}200000"),
)
TOML = (
    *("true", "false", "0", "-1", "1", "2", "1000000", "9223372036854775807", "9" * 30, "9" * 5000, "1e308", "nan"),
    *("inf", "-inf", "-0.0", '""', '"x"', "'a/b'", '"\\u001b]0;owned\\u0007"', "[]", "{}", "[[]]", "[1, 'a']"),
    *("{ a = 1 }", "1979-05-27", "07:32:00", '"' + "x" * 100_000 + '"', "[" * 100_000, "'../../../etc/passwd'"),
)
TOKENS = (
    *(b"\0", b"\xff" * 8, b"\x1b[2J", b"\n", b"{", b"[" * 1000, b'"', b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"."),
    *(
        b"(",
        b"]",
        b"}",
        b"t",
        b"l",
        b"h\0",
        b"q\0",
        b"R",
        b"b",
        b"cposix\nsystem\n",
        b"e",
        b"u",
        b"N",
        b"Q",
        b"\x8a\xff",
    ),
)
NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def mutate(folder: Path, rng: Random) -> list[str]:
    """Damage one to three places in the files below `folder`; return a description of each change."""
    return [_mutate_once(folder, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def _mutate_once(folder: Path, rng: Random) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "no file is left"
    path = rng.choice(files)
    if rng.random() < 0.04:
        return f"{path.relative_to(folder)}: {_replace(path, rng)}"
    structured = _STRUCTURED.get(path.suffix)
    data = path.read_bytes()
    if structured is not None and rng.random() < 0.8:
        changed = structured(data, rng)
        if changed is not None:
            path.write_bytes(changed[0])
            return f"{path.relative_to(folder)}: {changed[1][:300]}"
    new, what = _bytes(data, rng.choice(files).read_bytes(), rng)
    path.write_bytes(new)
    return f"{path.relative_to(folder)}: {what}"


def _replace(path: Path, rng: Random) -> str:
    """Put something else in the place of a file."""
    kind = rng.choice(("nothing", "a pipe", "a folder", "an empty file", "an endless device", "a link to itself"))
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "an empty file":
        path.touch()
    elif kind == "an endless device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    return f"replaced by {kind}"


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _bytes(data: bytes, other: bytes, rng: Random) -> tuple[bytes, str]:
    """Change some bytes. `other`: the bytes of a file of the same folder, for splices."""
    at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    end = min(end, at + rng.choice((1, 4, 16, 256, 1 << 20)))
    kind = rng.choice(
        ("flip", "flip", "flip", "number", "number", "cut", "append", "delete", "double", "zero", "splice", "token")
    )
    if kind == "flip":
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            if out:
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out), "bits flipped"
    if kind == "number":
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(NUMBERS) % (1 << 8 * width)
        new = number.to_bytes(width, rng.choice(("little", "big")))
        return data[:at] + new + data[at + width :], f"{number} in {width} bytes at {at}"
    if kind == "splice":
        start = rng.randrange(len(other) + 1)
        return data[:at] + other[start : start + rng.choice((8, 64, 1024))] + data[end:], f"a splice at {at}"
    if kind == "token":
        token = rng.choice(TOKENS) * rng.choice((1, 1, 1, 100))
        return data[:at] + token + data[rng.choice((at, at + len(token))) :], f"{token[:16]!r} at {at}"
    ways: dict[str, bytes] = {
        "cut": data[:at],
        "append": data + rng.randbytes(rng.choice((1, 8, 5000))),
        "delete": data[:at] + data[end:],
        "double": data[:end] + data[at:],
        "zero": data[:at] + bytes(end - at) + data[end:],
    }
    return ways[kind], f"{kind} at {at} to {end} of {len(data)}"


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _json(data: bytes, rng: Random) -> tuple[bytes, str] | None:
    """Change one value or key of a JSON text; None: it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    value, what = change_value(value, rng)
    return _dumped(value), what


def change_value(value: Any, rng: Random) -> tuple[Any, str]:
    """Change one value or key in a tree of JSON values; return the tree and a description."""
    holders = _holders(value)
    if not holders or rng.random() < 0.02:
        new = rng.choice(HOSTILE)
        return new, f"the whole is {_shown(new)}"
    where, holder, key = rng.choice(holders)
    kind = rng.choice(("hostile", "hostile", "hostile", "near", "near", "delete", "swap", "rename", "add", "many"))
    if kind == "near":
        holder[key] = _near(holder[key], rng)
    elif kind == "delete":
        del holder[key]
        return value, f"{where} deleted"
    elif kind == "swap":
        _, other, other_key = rng.choice(holders)
        holder[key], other[other_key] = other[other_key], holder[key]
        return value, f"{where} swapped"  # may make a tree that holds itself: _dumped refuses it
    elif kind == "rename" and isinstance(holder, dict):
        new = str(rng.choice(("x", "", "\x1b[2J", "x" * 100_000, "__class__", key + key, rng.choice(list(holder)))))
        holder[new] = holder.pop(key)
        return value, f"{where} renamed to {_shown(new)}"
    elif kind == "add" and isinstance(holder, dict):
        new = str(rng.choice(("x", "auto_map", "\x1b[2J", "x" * 1000)))
        holder[new] = rng.choice(HOSTILE)
    elif kind == "many" and isinstance(holder, list):
        holder[:] = holder * rng.choice((2, 100))
    else:
        holder[key] = rng.choice(HOSTILE)
    now = holder.get(key) if isinstance(holder, dict) else holder[key]
    return value, f"{where}: {kind}, {_shown(now)}"


def _holders(value: Any) -> list[tuple[str, Any, Any]]:
    """Every (path, holder, key) of a tree, without those of large lists after the first 50."""
    found, waiting = [], [("", value)]
    while waiting and len(found) < 5000:
        where, here = waiting.pop(0)
        items = (
            list(here.items()) if isinstance(here, dict) else list(enumerate(here)) if isinstance(here, list) else []
        )
        for key, item in items[:50]:
            found.append((f"{where}/{key}"[:100], here, key))
            waiting.append((f"{where}/{key}"[:100], item))
    return found


def _near(value: Any, rng: Random) -> Any:
    """A value that nearly is the given one."""
    if isinstance(value, bool):
        return rng.choice((not value, int(value), str(value)))
    if isinstance(value, int):
        real = float(max(-(10**300), min(value, 10**300)))  # an earlier change may have made it longer than floats go
        text = str(value) if abs(value) < 10**4000 else "9" * 4000
        ways = (value + 1, value - 1, 2 * value, 1000 * value, -value, real, text, [value], real + 0.5)
        return rng.choice(ways)
    if isinstance(value, float):
        return rng.choice((-value, value * 1e300, int(value) if math.isfinite(value) else 0, str(value), [value]))
    if isinstance(value, str):
        return rng.choice(
            (value + "x", value[:-1], value.upper(), value * 1000, [value], {value: value}, value + "\x1b[2J")
        )
    if isinstance(value, list):
        return rng.choice((value[::-1], value[:-1], value * 3, {str(i): item for i, item in enumerate(value)}, "x"))
    return rng.choice(([value], None, "x", 1))


def _dumped(value: Any) -> bytes:
    """JSON of a tree, in which a text such as DEEP + '100' becomes as many nested lists."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return b"[" * 100
    for depth in (100, 200_000):
        text = text.replace(json.dumps(f"{DEEP}{depth}"), "[" * depth + "]" * depth)
    return text.encode()


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _json_lines(data: bytes, rng: Random) -> tuple[bytes, str] | None:
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    changed = _json(lines[number], rng)
    if changed is None:
        return None
    lines[number] = changed[0]
    return b"\n".join(lines), f"line {number + 1}{changed[1]}"


def _safetensors(data: bytes, rng: Random) -> tuple[bytes, str] | None:
    """Change the JSON header of a safetensors file, and mostly its length too."""
    length = int.from_bytes(data[:8], "little")
    changed = _json(data[8 : 8 + length], rng)
    if changed is None or length > len(data):
        return None
    start = len(changed[0]) if rng.random() < 0.9 else length
    return start.to_bytes(8, "little") + changed[0] + data[8 + length :], f"header{changed[1]}"


# ---- TOML ------------------------------------------------------------------------------------------------------------


def _toml(data: bytes, rng: Random) -> tuple[bytes, str] | None:
    """Change one line of a TOML text."""
    lines = data.decode("utf-8", "replace").split("\n")
    numbers = [i for i, line in enumerate(lines) if line.strip()]
    if not numbers:
        return None
    i = rng.choice(numbers)
    key, equals, value = lines[i].partition("=")
    kind = rng.choice(("value", "value", "value", "inner", "delete", "double", "rename", "move", "section"))
    if kind == "value" and equals:
        lines[i] = f"{key}= {rng.choice(TOML)}"
    elif kind == "inner" and equals:
        lines[i] = f"{key}={re.sub(r'[-+.0-9e]+|true|false', lambda _: rng.choice(TOML[:14]), value, count=1)}"
    elif kind == "double":
        lines.insert(i, lines[i])
    elif kind == "rename":
        lines[i] = (
            f"{rng.choice(('x', 'kind', 'a.b', chr(34) + 'x' * 1000 + chr(34), key.strip() + 's'))} {equals}{value}"
        )
    elif kind == "move":
        lines[i], j = "", rng.choice(numbers)
        lines[j] = f"{lines[j]}\n{key}{equals}{value}"
    elif kind == "section":
        lines.insert(i, rng.choice(("[x]", "[[data]]", "[model.x]", "[" + ".".join("a" * 500) + "]")))
    else:
        del lines[i]
    return "\n".join(lines).encode("utf-8", "replace"), f"line {i + 1}: {kind}, {_shown(key)}"


_STRUCTURED: dict[str, Callable[[bytes, Random], tuple[bytes, str] | None]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".safetensors": _safetensors,
    ".toml": _toml,
}
