"""Pickles as data: those of Python are decoded, and nothing that a hostile one asks for is executed."""

import argparse
import collections
import os
import pickle
import pickletools
from pathlib import PurePosixPath

import pytest
import torch

from gpt.convert.torch_formats import pickle_as_data
from gpt.convert.torch_formats.pickle_as_data import (
    GlobalName,
    PersistentId,
    PickledDict,
    PickledObject,
    as_dict,
    decode,
    encode,
)
from gpt.errors import ConfigError

PLAIN = {"a": [1, -5, 2**40, -(2**70), 1.5, True, None], "b": ("x", ("y",), ()), "ü": {"c": [[], {}]}}


def plain(node):
    """Convert PickledDict to dict."""
    if isinstance(node, PickledDict):
        return {plain(key): plain(value) for key, value in node.pairs}
    return type(node)(map(plain, node)) if isinstance(node, list | tuple) else node


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_python_are_decoded_in_every_protocol(protocol):
    shared = [1, 2]
    value = {**PLAIN, "long": "x" * 70_000, "shared": [shared, shared], "bytes": b"raw" if protocol > 2 else None}
    decoded = decode(pickle.dumps(value, protocol), where="here")
    assert plain(decoded.root) == value
    assert decoded.names == ()
    theirs = decode(
        pickle.dumps(argparse.Namespace(n=3, p=PurePosixPath("/a"), o=collections.OrderedDict(k=1)), protocol), where=""
    )
    assert "argparse.Namespace" in theirs.names
    fields = as_dict(theirs.root, where="")
    assert fields["n"] == 3
    assert isinstance(fields["p"], PickledObject)
    assert fields["p"].of.endswith("PurePosixPath")
    assert as_dict(fields["o"], where="") == {"k": 1}


def test_python_and_torch_read_encoded_pickles():
    assert pickle.loads(encode(PLAIN)) == PLAIN
    assert plain(decode(encode(PLAIN), where="").root) == PLAIN
    made = PickledObject(
        "argparse.Namespace", (), {"size": PickledObject("torch.Size", ((2, 3),)), "dtype": GlobalName("torch.float32")}
    )
    found = pickle.loads(encode(made))
    assert (found.size, found.dtype) == (torch.Size([2, 3]), torch.float32)
    assert b"Q" in encode(PersistentId("elsewhere"))


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_nothing_that_a_pickle_names_is_called(tmp_path):
    canary = tmp_path / "canary"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        decoded = decode(pickle.dumps({"x": [Evil(canary)]}, protocol), where="here")
        assert decoded.names == ("posix.system",)
        (made,) = decoded.root.pairs[0][1]
        assert (made.of, made.arguments) == ("posix.system", (f"touch {canary}",))
    pickle.loads(pickle.dumps(Evil(canary)))  # to show that the call would have worked
    assert canary.exists()


def test_names_are_not_looked_up(tmp_path, monkeypatch):
    """They are not even imported: a module that leaves a trace is on the path."""
    (tmp_path / "trace_of_import.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    decoded = decode(b"\x80\x02ctrace_of_import\nthing\n)R.", where="")
    assert decoded.names == ("trace_of_import.thing",)
    assert not (tmp_path / "trace").exists()


HOSTILE = [
    (b"", "not a complete pickle"),
    (pickle.dumps(PLAIN)[:-9], "not a complete pickle"),
    (b"\x80\x02.", "not a complete pickle"),
    (b"\x80\x02}}.", "not a complete pickle"),
    (b"\x80\x02h\x05.", "not a complete pickle"),
    (b"\x80\x02u.", "not a complete pickle"),
    (b"\x80\x02}(K\x01u.", "not a complete pickle"),
    (b"\x80\x02K\x01]R.", "a call of a value without a name"),
    (b"\x80\x02cos\nsystem\n)R)R.", "a call of a value without a name"),
    (b"\x80\x02]}b.", "a state for a value that takes none"),
    (b"\x80\x02K\x01K\x02a.", "items for a value that takes none"),
    (b"\x80\x04]]\x93.", "a name that is not a string"),
    (b"\x80\x02\x82\x05.", "the pickle instruction EXT1 is not"),
    (b"(ios\nsystem\nS'x'\no.", "the pickle instruction INST is not"),
    (b"\x80\x04X\xff\xff\xff\x7fab.", "not a complete pickle"),
    (b"garbage", "not a complete pickle"),
    (b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", "an invalid name of 3 and 1 characters"),
    (b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x01" * 4096 + b".", "a number of 32761 bits"),
    (
        b"\x80\x04X\x00\x04\x00\x00" + b"a" * 1024 + b"q\x000" + b"h\x00h\x00\x930" * 99 + b".",
        "invalid name of 1024",
    ),
]


@pytest.mark.parametrize(("data", "words"), HOSTILE, ids=range(len(HOSTILE)))
def test_an_invalid_pickle_is_an_error_of_one_line(data, words):
    with pytest.raises(ConfigError, match=words) as error:
        decode(data, where="here")
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith("here: ")


def test_every_instruction_is_executed_or_refused():
    """No instruction of Python is skipped silently."""
    from gpt.convert.torch_formats import pickle_as_data

    machine = pickle_as_data._Machine()
    known = {
        *machine.others,
        *pickle_as_data._LITERALS,
        *pickle_as_data._CONSTANTS,
        *pickle_as_data._EMPTY,
        *pickle_as_data._SHORT_TUPLES,
        *pickle_as_data._NOTHING,
    }
    names = {opcode.name for opcode in pickletools.opcodes}
    assert known <= names
    assert {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "BYTEARRAY8"} <= names - known
    for name in names - known:
        assert not machine.step(name, None), name


def test_an_endless_structure_is_described_in_a_few_words():
    """A list that contains itself, and one of 2 ** 60 items in 60 steps, which would take forever to print."""
    root = decode(b"\x80\x02]q\x00h\x00a.", where="").root
    assert root[0] is root
    steps = b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))  # drop, then a list of the last one twice
    for data in (b"\x80\x02]q\x00h\x00a.", b"\x80\x02]q\x00" + steps + b"."):
        with pytest.raises(ConfigError, match="expected a dict with string keys, found a list"):
            as_dict(decode(data, where="here").root, where="here")


@pytest.mark.parametrize("items", [b"K\x01a", b"(X\x01\x00\x00\x00ae", b"(]]e"])
def test_items_of_an_object_may_be_anything(items):
    """They are keys with values only if its class is a dict."""
    for data in (b"\x80\x02cx\ny\n)R" + items + b".", b"\x80\x04cx\ny\n)}\x92."):
        with pytest.raises(ConfigError, match=r"expected a dict with string keys, found a 'x\.y'"):
            as_dict(decode(data, where="here").root, where="here")


def test_keys_may_be_anything_and_are_not_hashed():
    data = b"\x80\x02}(]K\x01u."
    assert decode(data, where="").root.pairs == [([], 1)]
    appended = b"\x80\x02cthing\nmade\n)RK\x01a."  # items that are no pairs
    for wrong in (data, appended):
        with pytest.raises(ConfigError, match=r"expected a dict with string keys, found (a dict|a 'thing\.made')"):
            as_dict(decode(wrong, where="here").root, where="here")


def test_instructions_and_names_are_limited(monkeypatch):
    """Each byte of a pickle can make an object, and each pair of two short strings a name of 600 characters."""
    words = [b"\x8c" + bytes([4]) + f"n{i:03d}".encode() for i in range(110)]
    data = b"\x80\x04" + b"".join(a + b + b"\x930" for a in words for b in words) + b"N."
    with pytest.raises(ConfigError, match="more than 10000 different names"):
        decode(data, where="here")
    monkeypatch.setattr(pickle_as_data, "MAX_STEPS", 1000)
    assert decode(b"\x80\x04" + b"}0" * 490 + b"N.", where="here").root is None
    with pytest.raises(ConfigError, match="here: a pickle of more than 1,000 instructions is too long"):
        decode(b"\x80\x04" + b"}0" * 500 + b"N.", where="here")
