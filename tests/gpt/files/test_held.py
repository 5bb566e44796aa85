"""One process at a time holds a name, and a killed one gives it up."""

import subprocess
import sys

import pytest

from gpt.errors import ConfigError
from gpt.files.held import held

PROGRAM = """
import sys, time
from pathlib import Path
from gpt.files.held import held
with held(Path(sys.argv[1]), message="taken"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_holder_is_refused_until_the_first_is_killed(tmp_path):
    lock = tmp_path / "lock"
    first = subprocess.Popen([sys.executable, "-c", PROGRAM, lock], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="taken"), held(lock, message="taken"):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert lock.exists()  # as a crash leaves it
    with held(lock, message="taken"):
        with pytest.raises(ConfigError, match="taken"), held(lock, message="taken"):
            pass
        assert lock.exists()
    assert not lock.exists()


def test_an_error_inside_gives_the_name_up(tmp_path):
    with pytest.raises(ValueError, match="mine"), held(tmp_path / "lock", message="taken"):
        raise ValueError("mine")
    with held(tmp_path / "lock", message="taken"):
        pass
