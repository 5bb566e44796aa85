"""Standard output and error that are closed, full, broken or not read, of real processes."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from itertools import product

import pytest

# It opens a file as training does, writes with Python and with C's descriptors, and proves that it reached its end.
TALKER = """
import os, sys, time
from gpt.telemetry.output import own_output
own_output(waits=sys.argv[2] == "waits")
kept = open(sys.argv[1], "wb", buffering=0)
for number in range(int(sys.argv[3])):
    print("out", number)
    print("error", number, file=sys.stderr)
    os.write(kept.fileno(), b"metrics\\n")
assert sys.stdin.read() == ""
os.write(kept.fileno(), b"done\\n")
"""


def talk(tmp_path, *, waits=False, lines=2, command=None, **streams):
    """Run TALKER; return its status and the lines in its file."""
    kept = tmp_path / "kept"
    words = [sys.executable, "-c", TALKER, str(kept), "waits" if waits else "never waits", str(lines)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    done = subprocess.run([*(command or []), *words], check=False, timeout=120, **streams)
    return done, kept.read_text().splitlines() if kept.exists() else []


@pytest.fixture
def pipes():
    """A function that returns the writing end of a pipe: full if nobody reads it, or broken."""
    with ExitStack() as stack:

        def make(*, is_broken):
            reader, writer = os.pipe()
            stack.callback(os.close, writer)
            if is_broken:
                os.close(reader)
                return writer
            stack.callback(os.close, reader)
            os.set_blocking(writer, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, bytes(4096))
            os.set_blocking(writer, True)
            return writer

        yield make


@pytest.mark.parametrize("closed", list(product((False, True), repeat=3)))
def test_closed_descriptors_are_no_files_of_the_process(tmp_path, closed):
    redirections = " ".join(f"{fd}>&-" for fd, is_closed in enumerate(closed) if is_closed)
    done, kept = talk(tmp_path, command=["sh", "-c", f'exec "$@" {redirections}', "sh"])
    assert (done.returncode, kept) == (0, ["metrics", "metrics", "done"]), done.stderr
    assert done.stdout == (b"" if closed[1] else b"out 0\nout 1\n")
    assert done.stderr == (b"" if closed[2] else b"error 0\nerror 1\n")


@pytest.mark.parametrize("kind", ["broken", "not read", "full disk"])
@pytest.mark.parametrize("which", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_output_that_nobody_takes_is_dropped(tmp_path, pipes, kind, which):
    with open("/dev/full", "wb") as full:
        streams = {name: full if kind == "full disk" else pipes(is_broken=kind == "broken") for name in which}
        done, kept = talk(tmp_path, lines=3, **streams)
    assert (done.returncode, kept) == (0, ["metrics"] * 3 + ["done"])
    if which == ("stderr",):
        assert done.stdout == b"out 0\nout 1\nout 2\n"
    if which == ("stdout",) and kind != "not read":
        why = "broken pipe" if kind == "broken" else "no space left on device"
        first, *lines = done.stderr.decode().splitlines()
        assert first == f"triaxial: standard output cannot be written ({why}); the run continues, see its directory"
        assert lines == ["error 0", "error 1", "error 2"]


def test_a_reader_that_comes_back_reads_how_much_is_missing():
    """The reader sleeps until the pipe has long been full; the writer ends in time all the same."""
    code = """
import sys, time
from gpt.telemetry.output import own_output
own_output(waits=False)
for number in range(40_000):
    print("line", number)
print("asleep", file=sys.stderr)
sys.stdin.read()
print("last line")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr.readline() == b"asleep\n"
        os.read(process.stdout.fileno(), 1 << 20)
        said = process.communicate(b"", timeout=60)[0].decode()
    assert process.returncode == 0
    assert "bytes of output were dropped: nobody read them\nlast line\n" in said


def test_the_descriptor_that_others_share_still_blocks(tmp_path):
    """Else the shell or `tee`, which has the same pipe or terminal, would lose output."""
    reader, writer = os.pipe()
    talk(tmp_path, stdout=writer)
    assert os.get_blocking(writer)
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_command_says_that_its_results_could_not_be_written(pipes, is_broken):
    command = [sys.executable, "-m", "launch.main", "doctor"]
    with open("/dev/full", "wb") as full:
        stdout = pipes(is_broken=True) if is_broken else full
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=120)
    message = b"triaxial: error: standard output cannot be written: no space left on device\n"
    assert (done.returncode, done.stderr) == ((141, b"") if is_broken else (1, message))


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_a_command_sleeps_while_a_pipe_that_does_not_block_is_full(tmp_path):
    code = "from gpt.telemetry.output import own_output; own_output(waits=True); print('x' * 200_000)"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    trace = ["strace", "-f", "-qq", "-e", "trace=write", "-o", tmp_path / "trace"]
    with subprocess.Popen([*trace, sys.executable, "-c", code], stdout=writer) as process:
        os.close(writer)
        said = os.read(reader, 1)
        time.sleep(0.5)  # the pipe is full
        while part := os.read(reader, 1 << 16):
            said += part
    os.close(reader)
    assert (process.returncode, said) == (0, b"x" * 200_000 + b"\n")
    assert (tmp_path / "trace").read_text().count("EAGAIN") < 100, "at most one for each page that the reader frees"


def test_letters_that_a_terminal_lacks_end_no_process(tmp_path):
    code = "from gpt.telemetry.output import own_output; own_output(waits=False); print('na\\xefve')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"na\\xefve\n"


def test_a_terminal_that_stands_still_blocks_nothing(tmp_path):
    """As after Ctrl-S. The kernel keeps 4 KiB for the terminal's reader."""
    reader, terminal = os.openpty()
    done, kept = talk(tmp_path, lines=1000, stdout=terminal, stderr=terminal)
    os.close(terminal)
    os.close(reader)
    assert (done.returncode, len(kept)) == (0, 1001)
