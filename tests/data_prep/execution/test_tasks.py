"""Do one task, and make the key of a task."""

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.execution.fingerprint import Fingerprint
from data_prep.execution.tasks import Stage, Task, TaskRequest, execute, plain, task_key
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


@dataclass(frozen=True)
class Nested:
    path: Path
    sizes: tuple[int, ...]


def request(tmp_path, functions, sources, **changes):
    stage = Stage("copy", functions.copy)
    task = Task(functions.Config("p", tmp_path / "log"), (sources[0],), (tmp_path / "w/copy/a.out",))
    given = {"fingerprint": stage.fingerprint(), "n_bytes": (4,), "host": socket.gethostname(), **changes}
    return TaskRequest(stage, task, folder=tmp_path / "w", attempts=tmp_path / "w/.tmp/run", **given)


def test_outputs_are_left_under_names_of_the_attempt(tmp_path, functions, sources):
    outcome = execute(request(tmp_path, functions, sources))
    (left,) = outcome.outputs
    assert left.parent == tmp_path / "w/.tmp/run/copy"
    assert left.name.endswith("-a.out")
    assert left.read_text() == "pa.in"
    assert outcome.files[0]["bytes"] == 5
    assert not (tmp_path / "w/copy").exists()
    assert execute(request(tmp_path, functions, sources)).outputs != outcome.outputs


def test_a_worker_with_other_inputs_or_another_installation_refuses(tmp_path, functions, sources):
    with pytest.raises(ConfigError, match=r"a\.in of 7 bytes has 4 bytes on "):
        execute(request(tmp_path, functions, sources, n_bytes=(7,)))
    here = Stage("copy", functions.copy).fingerprint()
    old = Fingerprint({**here.code, "stage_functions": "0"}, {**here.versions, "numpy": "1"})
    with pytest.raises(ConfigError, match=r"the code of stage_functions, numpy .* instead of 1\)\. Install the same"):
        execute(request(tmp_path, functions, sources, fingerprint=old))
    sources[0].unlink()
    with pytest.raises(ConfigError, match=r"a\.in of 4 bytes does not exist on "):
        execute(request(tmp_path, functions, sources))


def test_every_part_of_a_task_changes_its_key(tmp_path):
    def key(stage="s", code="c", version="v", config=(1,), inputs=("d",), output="o"):
        task = Task(Nested(tmp_path, config), (), (tmp_path / output,))
        return task_key(stage, Fingerprint({"m": code}, {"p": version}), task, inputs, folder=tmp_path)

    keys = [key(), key("t"), key(code="e"), key(version="w"), key(config=(2,)), key(inputs=("e",)), key(output="q")]
    assert len(set(keys)) == len(keys)
    assert key() == key()
    assert plain(Nested(Path("a"), (1, 2))) == {"path": "a", "sizes": [1, 2]}


def test_a_name_lists_three_inputs(functions):
    task = Task(None, tuple(Path(f"{n}.in") for n in range(5)), ())
    named = TaskRequest(Stage("s", functions.copy), task, Fingerprint({}, {}), (), Path(), Path(), "")
    assert named.name == "stage 's' of 0.in, 1.in, 2.in and 2 more"


def test_equal_numbers_give_equal_keys(tmp_path):
    def key(*sizes):
        task = Task(Nested(tmp_path, sizes), (), (tmp_path / "out",))
        return task_key("stage", Fingerprint({}, {}), task, [], folder=tmp_path)

    assert key(2, 0.2, 1e300, float("inf")) == key(2.0, 0.2, 1e300, float("inf"))
    assert len({key(2), key(2.5), key(-2), key(2**63), key(2**63 + 1), key(float("inf"))}) == 6
