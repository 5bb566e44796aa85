"""Decode pickles as data, and encode data as pickles. Nothing that a pickle names is imported, called or changed.

A pickle is a program. We execute only the instructions that build tuples, lists, dicts and numbers. An instruction to
call something becomes a `PickledObject`, a record of the call. docs/adr/0008 explains why neither Python's own
unpickler with a list of allowed names nor torch's `weights_only` is used.
"""

import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from gpt.errors import ConfigError


@dataclass(frozen=True)
class GlobalName:
    """A class or a function, by name only."""

    path: str


@dataclass(eq=False)
class PickledDict:
    """A dict as pairs, because its keys may not be hashable here."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    table: dict[str, Any] | None = None  # kept by `as_dict`: a pickle can refer to one dict a million times


@dataclass(eq=False)
class PickledObject:
    """A record of a call `of(*arguments)`, whose result would then get `state` and `items`. Nothing was called."""

    of: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)
    table: dict[str, Any] | None = None  # as above


@dataclass(eq=False)
class PersistentId:
    """A reference to data outside the pickle: in torch's files the elements of a tensor."""

    identity: Any


@dataclass(frozen=True)
class Decoded:
    """A decoded pickle. `names`: everything that unpickling would have imported, in order."""

    root: Any
    names: tuple[str, ...]


def decode(data: bytes | BinaryIO, *, where: str) -> Decoded:
    """Decode one pickle. ConfigError: it is not a pickle, is cut off, or has an unsupported instruction."""
    machine = _Machine()
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if number >= MAX_STEPS:
                raise ConfigError(f"{where}: a pickle of more than {MAX_STEPS:,} instructions is too long")
            if not machine.step(operation.name, argument):
                raise ConfigError(f"{where}: the pickle instruction {operation.name} is not supported")
        (root,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{where}: not a complete pickle ({type(error).__name__}: {str(error)[:200]})") from None
    return Decoded(root, tuple(machine.names))


def described(node: Any) -> str:
    """Describe a node in a few words. It is never printed whole, because it may contain itself."""
    if isinstance(node, PickledObject):
        return f"a {node.of[:100]!r}"
    if isinstance(node, GlobalName):
        return f"{node.path[:100]!r}"
    return "a dict" if isinstance(node, PickledDict) else f"a {type(node).__name__.lower()}"


def as_dict(node: Any, *, where: str) -> dict[str, Any]:
    """Return a dict, or the state of an object, as a dict. ConfigError: it is neither, or a key is not a string."""
    pairs: list[Any] = [None]
    if isinstance(node, PickledDict | PickledObject):
        if node.table is not None:
            return node.table
        inner = node.state if isinstance(node, PickledObject) else node
        pairs = inner.pairs if isinstance(inner, PickledDict) else node.items if isinstance(node, PickledObject) else []
    if not all(_has_string_key(pair) for pair in pairs):
        raise ConfigError(f"{where}: expected a dict with string keys, found {described(node)}")
    table: dict[str, Any] = dict(pairs)
    node.table = table
    return table


def _has_string_key(pair: Any) -> bool:
    """Return whether this is a pair with a string key. The items of an object may be anything."""
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": PickledDict,
    "EMPTY_SET": list,
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}
# A pickle can build any number of names, at 6 bytes each, from two memoised strings. Names are shown to the user.
_NAME = re.compile(r"[\w.<>-]{1,300}")
# An instruction of one byte makes an object of up to 300 bytes: this is at most a few gigabytes, and a minute.
# 400,000 parts of tensors need as many.
MAX_STEPS = 24_000_000
_MAX_NAMES = 10_000  # different ones; metadata has a dozen
_MAX_INT_BITS = 512  # sizes and seeds are smaller, and Python refuses to print much longer numbers


class _Machine:
    """A pickle machine: stack, marks and memo. The methods in `others` take an instruction's argument."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack below each mark
        self.memo: dict[int, Any] = {}
        self.names: dict[str, None] = {}  # in order, each once
        self.others: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "POP": lambda _: self._drop(),
            "TUPLE": lambda _: self._push_above_mark(tuple),
            "FROZENSET": lambda _: self._push_above_mark(list),
            "APPEND": lambda _: self._extend([self.stack.pop()]),
            "APPENDS": lambda _: self._extend(self._above_mark()),
            "ADDITEMS": lambda _: self._extend(self._above_mark()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._above_mark()),
            "GLOBAL": lambda argument: self._name(*argument.split(" ")),
            "STACK_GLOBAL": lambda _: self._name(self.stack.pop(-2), self.stack.pop()),
            "NEWOBJ": lambda _: self._make(),
            "NEWOBJ_EX": self._make_with_keywords,
            "REDUCE": lambda _: self._make(),
            "BUILD": self._build,
            "BINPERSID": lambda _: self.stack.append(PersistentId(self.stack.pop())),
            "MEMOIZE": lambda _: self._keep(len(self.memo)),
            "BINPUT": self._keep,
            "LONG_BINPUT": self._keep,
            "BINGET": lambda index: self.stack.append(self.memo[index]),
            "LONG_BINGET": lambda index: self.stack.append(self.memo[index]),
        }

    def step(self, operation: str, argument: Any) -> bool:
        """Execute an instruction. False: it is not supported."""
        if operation in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > _MAX_INT_BITS:
                raise ValueError(f"a number of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation])
        elif operation in _EMPTY:
            self.stack.append(_EMPTY[operation]())
        elif operation in _SHORT_TUPLES:
            parts = [self.stack.pop() for _ in range(_SHORT_TUPLES[operation])]
            self.stack.append(tuple(reversed(parts)))
        elif operation in self.others:
            self.others[operation](argument)
        else:
            return operation in _NOTHING
        return True

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _above_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.below.pop()
        return above

    def _push_above_mark(self, kind: Callable[[list[Any]], Any]) -> None:
        above = self._above_mark()
        self.stack.append(kind(above))

    def _drop(self) -> None:
        self.stack.pop()

    def _keep(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | PickledObject):
            raise ValueError("items for a value that takes none")
        (target.items if isinstance(target, PickledObject) else target).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, PickledDict | PickledObject) or len(items) % 2:
            raise ValueError("keys for a value that takes none")
        pairs = target.items if isinstance(target, PickledObject) else target.pairs
        pairs.extend(zip(items[::2], items[1::2], strict=True))

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not a string")
        if not (_NAME.fullmatch(module) and _NAME.fullmatch(name)):
            raise ValueError(f"an invalid name of {len(module)} and {len(name)} characters")
        path = f"{module}.{name}"
        self.names[path] = None
        if len(self.names) > _MAX_NAMES:
            raise ValueError(f"more than {_MAX_NAMES} different names")
        self.stack.append(GlobalName(path))

    def _make(self) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        if not isinstance(of, GlobalName) or not isinstance(arguments, tuple):
            raise ValueError("a call of a value without a name")
        self.stack.append(PickledObject(of.path, arguments))

    def _make_with_keywords(self, _: Any) -> None:
        keywords = self.stack.pop()
        self._make()
        self.stack[-1].items.append(keywords)

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, PickledObject):
            raise ValueError("a state for a value that takes none")
        target.state = state


def encode(node: Any) -> bytes:
    """Encode nested values as a pickle in protocol 2: dict, list, tuple, str, numbers, None and the classes above."""
    return b"\x80\x02" + b"".join(_encoded(node)) + b"."


def _encoded(node: Any) -> Iterator[bytes]:
    if node is None or isinstance(node, bool):
        yield {None: b"N", True: b"\x88", False: b"\x89"}[node]
    elif isinstance(node, str):
        text = node.encode()
        yield b"X" + struct.pack("<I", len(text)) + text
    elif isinstance(node, int):
        yield _encoded_int(node)
    elif isinstance(node, float):
        yield b"G" + struct.pack(">d", node)
    elif isinstance(node, GlobalName):
        module, _, name = node.path.rpartition(".")
        yield f"c{module}\n{name}\n".encode()
    elif isinstance(node, PersistentId):
        yield from _encoded(node.identity)
        yield b"Q"
    elif isinstance(node, PickledObject):
        yield from _encoded_made(node)
    else:
        yield from _encoded_container(node)


def _encoded_int(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _encoded_container(node: Any) -> Iterator[bytes]:
    if isinstance(node, tuple):
        yield b"("
        for item in node:
            yield from _encoded(item)
        yield b"t"
    elif isinstance(node, list):
        yield b"]("
        for item in node:
            yield from _encoded(item)
        yield b"e"
    else:
        assert isinstance(node, dict | PickledDict), type(node)
        yield b"}("
        for pair in node.items() if isinstance(node, dict) else node.pairs:
            yield from _encoded(pair[0])
            yield from _encoded(pair[1])
        yield b"u"


def _encoded_made(node: PickledObject) -> Iterator[bytes]:
    """Encode a call (REDUCE), or with `state` an object that is made empty and then gets its state (NEWOBJ, BUILD)."""
    assert not node.items
    yield from _encoded(GlobalName(node.of))
    yield from _encoded(node.arguments)
    yield b"R" if node.state is None else b"\x81"
    if node.state is not None:
        yield from _encoded(node.state)
        yield b"b"
