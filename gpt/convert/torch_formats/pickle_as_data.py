"""A pickle taken apart as data, and made: nothing that it names is imported, looked up, called or changed.

A pickle is a program. Of its instructions those that build tuples, lists and numbers are carried out; "call this"
becomes a `Made`, a record of what would have been called with what. docs/adr/0008 says why neither Python's own reader
with a list of allowed names nor torch's `weights_only` is used.
"""

import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from gpt.errors import ConfigError


@dataclass(frozen=True)
class Name:
    """A class or a function, by name alone."""

    path: str


@dataclass(eq=False)
class Table:
    """A dict whose keys need not be hashable here."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Made:
    """What would have been `of(*arguments)`, then given `state`, then filled with `items`; none of it was done."""

    of: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Outside:
    """What lies outside the pickle, under this identity: in torch's files a tensor's bytes."""

    identity: Any


@dataclass(frozen=True)
class Decoded:
    """`names`: of all that it would have imported, in order."""

    root: Any
    names: tuple[str, ...]


def decode(data: bytes | BinaryIO, *, where: str) -> Decoded:
    """Read one pickle. ConfigError: it is none, cut off, or has an instruction that is not here."""
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(data):
            if not machine.step(operation.name, argument):
                raise ConfigError(f"{where}: the pickle asks for {operation.name}, which is not understood here")
        (root,) = machine.stack
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{where}: no whole pickle ({type(error).__name__}: {str(error)[:200]})") from None
    return Decoded(root, tuple(machine.names))


def described(node: Any) -> str:
    """What a node is, in a few words; never the whole of it, which may be without end."""
    if isinstance(node, Made):
        return f"a {node.of[:100]!r}"
    return f"{node.path[:100]!r}" if isinstance(node, Name) else f"a {type(node).__name__.lower()}"


def as_dict(node: Any, *, where: str) -> dict[str, Any]:
    """A table, or a made object's state, as a dict. ConfigError: it is neither, or a key is no text."""
    if isinstance(node, Made):
        node = node.state if isinstance(node.state, Table) else Table(node.items)
    pairs: list[Any] = node.pairs if isinstance(node, Table) else [None]
    if not all(_is_named(pair) for pair in pairs):
        raise ConfigError(f"{where}: {described(node)} is where a table of names belongs")
    return dict(pairs)


def _is_named(pair: Any) -> bool:
    """A made object's items may be anything."""
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": Table,
    "EMPTY_SET": list,
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}
# Two texts kept once can be made a name any number of times, at 6 bytes each; and names are shown to the user.
_NAME = re.compile(r"[\w.<>-]{1,300}")
_MAX_INT_BITS = 512  # more is no size or seed, and Python refuses to show what is much longer


class _Machine:
    """The pickle's stack. Every method takes an instruction's argument."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.names: list[str] = []
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
            "BINPERSID": lambda _: self.stack.append(Outside(self.stack.pop())),
            "MEMOIZE": lambda _: self._keep(len(self.memo)),
            "BINPUT": self._keep,
            "LONG_BINPUT": self._keep,
            "BINGET": lambda place: self.stack.append(self.memo[place]),
            "LONG_BINGET": lambda place: self.stack.append(self.memo[place]),
        }

    def step(self, operation: str, argument: Any) -> bool:
        """Whether the instruction is known here; then it has been carried out."""
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

    def _keep(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Made):
            raise ValueError("items for what takes none")
        (target.items if isinstance(target, Made) else target).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Table | Made) or len(items) % 2:
            raise ValueError("keys for what takes none")
        pairs = target.items if isinstance(target, Made) else target.pairs
        pairs.extend(zip(items[::2], items[1::2], strict=True))

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if not (_NAME.fullmatch(module) and _NAME.fullmatch(name)):
            raise ValueError(f"a name of {len(module)} and {len(name)} characters that is none")
        self.names.append(f"{module}.{name}")
        self.stack.append(Name(self.names[-1]))

    def _make(self) -> None:
        arguments, of = self.stack.pop(), self.stack.pop()
        if not isinstance(of, Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of what has no name")
        self.stack.append(Made(of.path, arguments))

    def _make_with_keywords(self, _: Any) -> None:
        keywords = self.stack.pop()
        self._make()
        self.stack[-1].items.append(keywords)

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Made):
            raise ValueError("a state for what has none")
        target.state = state


def encode(node: Any) -> bytes:
    """The pickle, in protocol 2, of nested Made, Name, Outside, Table, dict, list, tuple, text, numbers and None."""
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
    elif isinstance(node, Name):
        module, _, name = node.path.rpartition(".")
        yield f"c{module}\n{name}\n".encode()
    elif isinstance(node, Outside):
        yield from _encoded(node.identity)
        yield b"Q"
    elif isinstance(node, Made):
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
        assert isinstance(node, dict | Table), type(node)
        yield b"}("
        for pair in node.items() if isinstance(node, dict) else node.pairs:
            yield from _encoded(pair[0])
            yield from _encoded(pair[1])
        yield b"u"


def _encoded_made(node: Made) -> Iterator[bytes]:
    """By calling (REDUCE); a class that makes its objects empty and has their state set takes `state`."""
    assert not node.items
    yield from _encoded(Name(node.of))
    yield from _encoded(node.arguments)
    yield b"R" if node.state is None else b"\x81"
    if node.state is not None:
        yield from _encoded(node.state)
        yield b"b"
