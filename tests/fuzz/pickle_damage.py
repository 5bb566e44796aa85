"""Damage inside pickles: change one value of the decoded tree, and encode it again."""

import zipfile
from pathlib import Path
from random import Random
from typing import Any

from mutations import HOSTILE, mutate

from gpt.convert.torch_formats.pickle_as_data import GlobalName, PickledDict, PickledObject, decode, encode
from gpt.convert.torch_formats.torch_archive import read_archive, write_archive

VALUES = tuple(value for value in HOSTILE if not (isinstance(value, str) and not value.isprintable()))
VALUES = (*VALUES, -1, 2**40, (), (0,), (2**62, 2**62), GlobalName("torch.float16"), GlobalName("os.system"))


def damage_torch_dist(folder: Path, rng: Random) -> list[str]:
    """Damage `.metadata` or `common.pt` inside half of the time, else any file outside."""
    files = [path for path in sorted(folder.rglob("*")) if path.name in (".metadata", "common.pt")]
    if rng.random() < 0.5 or not files:
        return mutate(folder, rng)
    path = rng.choice(files)
    archived = path.name == "common.pt"
    root = decode(read_archive(path).pickle if archived else path.read_bytes(), where=str(path)).root
    changes = [_change(root, rng) for _ in range(rng.choice((1, 1, 2)))]
    try:
        data = encode(root)
    except (AssertionError, OverflowError, UnicodeError, KeyError, TypeError, RecursionError):
        return [*changes, "which no pickle can hold: left as it was"]
    if archived:
        path.unlink()
        with path.open("xb") as file:
            write_archive(file, data)
        assert zipfile.is_zipfile(path)
    else:
        path.write_bytes(data)
    return [f"{path.name}: {change}" for change in changes]


def _change(root: Any, rng: Random) -> str:
    """Change one value somewhere in the tree."""
    places = _places(root)
    where, holder, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "swap", "double", "remove"))
    value = rng.choice(VALUES)
    if kind == "swap":
        _, other, other_key = rng.choice(places)
        value = _get(other, other_key)
    if isinstance(holder, list) and kind == "double":
        holder.extend(list(holder))
    elif isinstance(holder, list) and kind == "remove":
        del holder[key]
    else:
        _set(holder, key, value)
    return f"{where}: {kind}, {repr(value)[:60]}"


def _places(root: Any) -> list[tuple[str, Any, Any]]:
    """Every (path, holder, key) of the tree; lists and tuples up to 50 items."""
    found: list[tuple[str, Any, Any]] = []
    waiting, seen = [("", root)], set()
    while waiting and len(found) < 20_000:
        where, here = waiting.pop(0)
        if id(here) in seen:
            continue
        seen.add(id(here))
        keys: list[Any] = []
        if isinstance(here, PickledDict):
            keys = [(i, side) for i in range(min(len(here.pairs), 50)) for side in (0, 1)]
        elif isinstance(here, PickledObject):
            keys = ["state", "arguments"]
        elif isinstance(here, list):
            keys = list(range(min(len(here), 50)))
        for key in keys:
            found.append((f"{where}/{key}"[-80:], here, key))
            waiting.append((f"{where}/{key}"[-80:], _get(here, key)))
    return found


def _get(holder: Any, key: Any) -> Any:
    if isinstance(holder, PickledDict):
        return holder.pairs[key[0]][key[1]]
    return getattr(holder, key) if isinstance(holder, PickledObject) else holder[key]


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, PickledDict):
        pair = list(holder.pairs[key[0]])
        pair[key[1]] = value
        holder.pairs[key[0]] = tuple(pair)
    elif isinstance(holder, PickledObject):
        setattr(holder, key, value)
    else:
        holder[key] = value
