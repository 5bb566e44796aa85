"""Find input files in folders, and see a wrong field before the first stage."""

import json
import os

import pytest

from data_prep.inputs.config import InputConfig
from data_prep.inputs.find import check_inputs, find_inputs, left_out, name_left_out, name_linked
from gpt.errors import ConfigError

pytest.importorskip("isal", reason="the extra 'data' is not installed")


def test_a_folder_gives_what_can_be_read_and_names_the_rest(tmp_path):
    for name in ("a.txt", "b/c.jsonl", "b/README.md", "x.png", "notes", ".git/d.txt", ".e.txt", "out/work/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    out = tmp_path / "out"
    found = find_inputs([str(tmp_path)], without=[out])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.txt", "b/README.md", "b/c.jsonl"]
    config = InputConfig(paths=(str(tmp_path), str(tmp_path / "a.txt")))
    others = left_out(config, without=[out])
    assert [path.name for path in others] == ["notes", "x.png"]
    line = name_left_out(others)
    assert line.startswith("input.paths: 2 files have endings that are not read (1 no ending, 1 .png): notes, x.png.")
    assert find_inputs([str(tmp_path)], without=[out], endings={"": "text"})[-1].name == "notes"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no file in the folder .* can be read"):
        find_inputs([str(tmp_path / "empty")])


def test_only_a_corpus_of_token_files_is_left_out(tmp_path):
    for name in ("mine/corpus.json", "mine/a.txt", "made/corpus.json", "made/train.idx", "made/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    assert [path.name for path in find_inputs([str(tmp_path)])] == ["a.txt"]


def test_a_linked_folder_is_not_followed_but_named(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/b.txt").write_text("words")
    (tmp_path / "near").mkdir()
    (tmp_path / "near/a.txt").write_text("words")
    (tmp_path / "near/link").symlink_to(tmp_path / "far")
    (tmp_path / "near/again").symlink_to(tmp_path / "near")
    config = InputConfig(paths=(str(tmp_path / "near"),))
    assert [path.name for path in find_inputs(config.paths)] == ["a.txt"]
    line = name_linked(config)
    assert line.startswith("input.paths: 2 links to folders are not followed: ")
    assert f"{tmp_path}/near/again, {tmp_path}/near/link." in line
    assert name_linked(InputConfig(paths=(str(tmp_path / "far"),))) == ""


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    """Root may read every folder, but no path may be longer than 4,096 bytes."""
    (tmp_path / "a.txt").write_text("words")
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=at)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with pytest.raises(ConfigError, match="cannot be read: file name too long"):
        find_inputs([str(tmp_path)])


def test_a_wrong_field_is_seen_before_reading(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "short", "content": "a long text", "n": 3}) + "\n")
    config = InputConfig(paths=(str(path),))
    with pytest.raises(ConfigError, match=r"Its texts are in content, title. Use input.text_field = 'content'"):
        check_inputs([path], config)
    check_inputs([path], InputConfig(paths=(str(path),), text_field="content"))
    path.write_text("no json\n")
    check_inputs([path], config)  # the stage counts it as malformed


def test_one_text_is_no_corpus_unless_it_is_cut(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("words")
    with pytest.raises(ConfigError, match="is one document, and training and validation need one each"):
        check_inputs([path], InputConfig(paths=(str(path),)))
    check_inputs([path], InputConfig(paths=(str(path),), text_split_bytes=100))
    check_inputs([path, path], InputConfig(paths=(str(path),)))
