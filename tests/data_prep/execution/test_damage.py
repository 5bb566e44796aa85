"""Files are compared with their recorded digests, each once; a damaged one is made again, at most twice."""

import pytest

from data_prep.execution.damage import (
    MAX_OWN,
    DamagedInputError,
    WrittenFile,
    damaged_path,
    divide,
    find_damage,
    repeat_until_whole,
    report_damage,
)
from data_prep.execution.files import describe_file
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def written(folder, *names):
    for name in names:
        (folder / name).write_text(name)
    return [WrittenFile(folder / name, describe_file(folder / name)["digest"]) for name in names]


def test_a_flipped_bit_is_found(tmp_path):
    files = written(tmp_path, "a", "b")
    assert find_damage(files) is None
    assert damaged_path(files[1]) is None
    (tmp_path / "b").write_text("c")
    assert find_damage(files) == damaged_path(files[1]) == tmp_path / "b"
    (tmp_path / "b").unlink()
    assert find_damage(files) == damaged_path(files[1]) == tmp_path / "b"


def test_each_file_is_compared_once(tmp_path):
    a, b, model, rows = written(tmp_path, "a", "b", "model", "rows")
    shared, own = divide([[a, model], [b, model]], [(rows,), (rows,)])
    assert (shared, own) == ([model, rows], [(a,), (b,)])
    both = [a, b]
    assert divide([both, both], [(), ()]) == (both, [(), ()])
    many = written(tmp_path, *map(str, range(MAX_OWN + 1)))
    assert divide([many], [()]) == (many, [()]), "several workers share the work"


def test_a_damaged_file_of_the_folder_is_made_again_and_the_users_is_an_error(tmp_path):
    (tmp_path / "work").mkdir()
    file, said = tmp_path / "work/a", []
    file.touch()

    def start_again(paths, line):
        assert paths == [file]
        said.append(line)

    def steps(n_damaged):
        def run():
            if len(said) < n_damaged:
                report_damage([file], tmp_path / "work")
            return file.exists()

        return run

    assert repeat_until_whole(steps(2), start_again)
    assert said == [f"{file}: its content is not what its task wrote. It is made again"] * 2
    said.clear()
    with pytest.raises(ConfigError, match=r"3 times. Check the disk"):
        repeat_until_whole(steps(9), start_again)
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="mine has changed since this run first read it"):
        report_damage([tmp_path / "mine"], tmp_path / "work")
    with pytest.raises(ConfigError, match=r"mine is not as the run of its corpus wrote it. Prepare that corpus again"):
        report_damage([tmp_path / "mine"], tmp_path / "work", recorded={tmp_path / "mine"})
    with pytest.raises(DamagedInputError):
        report_damage([file], tmp_path / "work", recorded={file})
    assert (tmp_path / "mine").exists()
    assert file.exists(), "another share may read it at the moment"
