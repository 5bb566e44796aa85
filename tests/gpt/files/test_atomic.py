"""Files and folders appear complete or not at all, and links under their names are not followed."""

import os
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.files.atomic import append_to, hidden_name, open_replacement, partial_folder, replace_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_replaced_file_is_old_until_the_block_ends(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "x").write_text("old")
    with open_replacement(tmp_path / "x", durable=durable) as file:
        file.write(b"ne")
        assert (tmp_path / "x").read_text() == "old"
        file.write(b"w")
    assert (tmp_path / "x").read_text() == "new"
    replace_file(tmp_path / "x", "newer é")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "newer é"
    replace_file(tmp_path / "y", b"\x00")
    assert (tmp_path / "y").read_bytes() == b"\x00"
    assert names(tmp_path) == ["x", "y"]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def fail() -> None:
        with open_replacement(tmp_path / "x") as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "gone" / "x", "new")


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        append_to(tmp_path / "link")
    replace_file(tmp_path / "link", "mine")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "precious"


def test_appending_keeps_what_is_there_and_makes_a_missing_file(tmp_path: Path) -> None:
    for text in (b"a", b"b"):
        with append_to(tmp_path / "x") as file:
            file.write(text)
    assert (tmp_path / "x").read_bytes() == b"ab"


def test_hidden_names_are_new_each_time(tmp_path: Path) -> None:
    found = {hidden_name(tmp_path / "x") for _ in range(100)}
    assert len(found) == 100
    assert all(path.parent == tmp_path and path.name.startswith(".x.") for path in found)


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with partial_folder(output) as folder:
        (folder / "x").write_text("x")
        assert not output.exists()
    assert names(output) == ["x"]
    assert names(output.parent) == ["out"]
    with pytest.raises(ConfigError, match="out exists already"), partial_folder(output):
        pass
    with pytest.raises(KeyError), partial_folder(tmp_path / "other"):
        raise KeyError
    with (
        pytest.raises(ConfigError, match=r"other could not be written: .*No space"),
        partial_folder(tmp_path / "other"),
    ):
        raise OSError(28, "No space left on device")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="link exists already"), partial_folder(tmp_path / "link"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["deep", "link"]
