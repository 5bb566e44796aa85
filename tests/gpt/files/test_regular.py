"""Reading regular files: everything else that may have the name is refused, and no open waits."""

import os
import socket
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.files.regular import copy_file, copy_folder, open_regular, read_bytes, read_text


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("naïve")
    assert read_text(path) == "naïve"
    assert read_bytes(path, max_bytes=6) == b"na\xc3\xafve"
    with pytest.raises(ConfigError, match="has more than 5 bytes"):
        read_bytes(path, max_bytes=5)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_a_link_is_followed_unless_the_caller_forbids_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    assert read_bytes(link) == b""
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(link, follow_links=False)
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ConfigError, match="link is a symbolic link to itself, not a regular file"):
        open_regular(link)


def test_everything_else_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name, kind in (
            (".", "a folder"),
            ("pipe", "a named pipe"),
            ("socket", "a socket"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(ConfigError, match=f"{name} is {kind}, not a regular file"):
                open_regular(Path(name))


def test_a_folder_is_copied_without_following_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("x")
    copy_folder(source, target)
    assert (target / "inner" / "file").read_text() == "x"
    for plant in (lambda path: path.symlink_to("/etc/hostname"), os.mkfifo):
        plant(source / "planted")
        with pytest.raises(ConfigError, match="planted is a symbolic link or no regular file, and is not copied"):
            copy_folder(source, tmp_path / "other")
        assert not (tmp_path / "other").exists()
        with pytest.raises(ConfigError, match=r"planted is a (symbolic link|named pipe), not a regular file"):
            copy_file(source / "planted", tmp_path / "copied")
        assert not (tmp_path / "copied").exists()
        (source / "planted").unlink()
    copy_file(source / "inner" / "file", tmp_path / "copied")
    assert (tmp_path / "copied").read_text() == "x"
