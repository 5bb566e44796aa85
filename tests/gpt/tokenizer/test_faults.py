"""Crafted tokenizer files that panic, abort or hang the library give one line, and the library prints nothing."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from gpt.tokenizer.faults import TokenizerFault, library_faults, try_tokenizer
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece

END = {"id": 1, "content": "</s>", "special": True}
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", -1.0], ["a", -2.0]]}
ABORTS = {"a": 0, "</s>": 1, "é": 2, "aé": 3}  # its error message cuts a character in two


def write(path: Path, **settings: Any) -> Path:
    table = {"version": "1.0", "added_tokens": [{**END, **FLAGS}], "model": UNIGRAM, **settings}
    path.write_text(json.dumps(table))
    return path


def precompiled(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def test_a_good_tokenizer_passes(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
    try_tokenizer(write(tmp_path / "tokenizer.json"), ["a", "\ud800 b"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"normalizer": precompiled(b"\0\0\0")}, "not a Hugging Face tokenizer file .PanicException: Precompiled"),
        ({"normalizer": precompiled(b"\1\0\0\0")}, "cannot encode a text .PanicException: index out of bounds"),
        ({"model": {"type": "x\x1b[2J\n"}}, "not a Hugging Face tokenizer file"),
    ],
)
def test_a_panic_is_one_line_also_without_a_trial(
    tmp_path: Path, settings: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
    path = write(tmp_path / "tokenizer.json", **settings)
    with pytest.raises(TokenizerFault, match=words):
        load_tokenizer(path).encode("a")
    capfd.readouterr()
    with pytest.raises(TokenizerFault, match=words) as raised:
        try_tokenizer(path, ["a"])
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "{", "not a Hugging Face tokenizer file"),
        ("x.model", "\x0a\xff", "not a sentencepiece model"),
        ("x.model", "", "not a sentencepiece model .IndexError|its library crashes"),  # 0.2.3, 0.2.0
    ],
)
def test_other_damage_is_one_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        try_tokenizer(tmp_path / name, ["a"])


def test_pieces_that_are_not_text_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    train_sentencepiece(iter(["a text of a few words"] * 3), path, vocab_size=270)
    path.write_bytes(path.read_bytes().replace(b"<|endoftext|>", b"\xff" * 13))
    with pytest.raises(ConfigError, match=r"not a sentencepiece model|no end-of-document piece"):
        load_tokenizer(path)
    path.write_bytes(re.sub(rb"<0x4[0-9]>", b"\xff" * 6, path.read_bytes()).replace(b"\xff" * 13, b"<|endoftext|>"))
    with pytest.raises(TokenizerFault, match=r"not a sentencepiece model .UnicodeDecodeError"):
        load_tokenizer(path)


def test_an_abort_of_the_library_ends_only_the_trial(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
    model = {"type": "BPE", "continuing_subword_prefix": "z", "vocab": ABORTS, "merges": [["a", "é"]]}
    words = r"its library crashes|not a Hugging Face tokenizer file \(PanicException"  # tokenizers 0.23, 0.21
    with pytest.raises(TokenizerFault, match=words):
        try_tokenizer(write(tmp_path / "tokenizer.json", model=model), ["a"])
    assert capfd.readouterr() == ("", "")


def test_the_current_folder_gives_the_trial_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download may hold a numpy.py, and the user may stand in it."""
    marker = tmp_path / "marker"
    for name in ("numpy", "tokenizers", "json", "sentencepiece", "gpt"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    train_sentencepiece(iter(["a text of a few words"] * 3), tmp_path / "x.model", vocab_size=270)
    monkeypatch.chdir(tmp_path)
    try_tokenizer(Path("x.model"), ["a"])
    assert not marker.exists()


def test_only_errors_of_the_library_are_turned(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), library_faults("x"):
        raise KeyboardInterrupt
    with pytest.raises(TokenizerFault, match=r"x .ValueError: a"), library_faults("x"):
        raise ValueError("a")
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"no such tokenizer file|named pipe"):
        load_tokenizer(tmp_path / "tokenizer.json")
