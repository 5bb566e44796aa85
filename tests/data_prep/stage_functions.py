"""Stage functions for the tests of workspace and workers, in a module that worker processes can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.documents.counts import Counts
from data_prep.execution.tasks import TaskResult
from gpt.errors import ConfigError


@dataclass(frozen=True)
class Config:
    prefix: str
    log: Path


def copy(config, inputs, outputs):
    with open(Path(config.log), "a") as log:
        log.write(inputs[0].name + "\n")
    outputs[0].write_bytes(config.prefix.encode() + inputs[0].read_bytes())
    return TaskResult([Counts("copy", 2, 1, 10, 5, {"why": 1})], {"pid": os.getpid()})


def join(config, inputs, outputs):
    outputs[0].write_bytes(b"".join(path.read_bytes() for path in inputs))
    return TaskResult()


def write_pid(config):
    path = Path(f"{config.log}.pid")
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)  # a reader must not find it half written


def die(config, inputs, outputs):
    outputs[0].write_bytes(b"half")
    if config.prefix == "always" or not Path(f"{config.log}.pid").exists():
        write_pid(config)
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(config, inputs, outputs)


def wait_to_be_killed(config, inputs, outputs):
    outputs[0].write_bytes(b"half")
    if inputs[0].name == "a.in" and not Path(f"{config.log}.pid").exists():
        write_pid(config)
        time.sleep(300)
    return copy(config, inputs, outputs)


def fail(config, inputs, outputs):
    outputs[0].write_bytes(b"half")
    if config.prefix == "mistake":
        raise ConfigError("the setting is wrong")
    raise ValueError("a bug")


def forget(config, inputs, outputs):
    return TaskResult()


def die_with_a_child(config, inputs, outputs):
    if Path(f"{config.log}.child").exists():
        return copy(config, inputs, outputs)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(f"{config.log}.child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def leave_more(config, inputs, outputs):
    outputs[0].with_suffix(".scratch").write_bytes(b"a temporary file of the stage's own")
    return copy(config, inputs, outputs)


def change_code(config, inputs, outputs):
    Path(config.prefix).write_text("x = 2")  # as if someone had installed another version
    outputs[0].write_bytes(b"")
    return TaskResult()


def die_once(path):
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def sleep(seconds):
    time.sleep(seconds)


def identity(value):
    return value * 2
