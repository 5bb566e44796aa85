"""What a run records: metrics.jsonl, the offline W&B run, and lines in a pipe and on a terminal."""

import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt.console import Console, TimeLeft, fit, human_count, human_duration, step_fields
from gpt.errors import ConfigError
from gpt.metrics import MetricsConfig, MetricsWriter, supersede_after

REPOSITORY = Path(__file__).parents[2]
OFF = MetricsConfig(wandb="disabled")


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def write_steps(directory: Path, steps: range, *, resume_step: int | None = None, take: int = 1) -> None:
    with MetricsWriter(OFF, directory, run_config={}, resume_step=resume_step, interactive=False) as writer:
        for step in steps:
            writer.log(step, {"loss": 10.0 / step, "take": take})


def python(code: str, *arguments: object, environment: dict[str, str] | None = None) -> str:
    """Standard output of a Python process in the repository; its standard error must be empty."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- metrics.jsonl


def test_one_json_object_a_line_written_at_once(tmp_path: Path) -> None:
    with MetricsWriter(OFF, tmp_path / "new" / "run", run_config={}, resume_step=None, interactive=False) as writer:
        for step in (1, 2):
            writer.log(step, {"loss": 4.0 / step, "tokens_seen": 10**15 * step})
            assert len(read_lines(writer.path)) == step  # nothing waits in a buffer
        writer.log(2, {"validation/dev/loss": 2.5})
    assert read_lines(tmp_path / "new" / "run" / "metrics.jsonl") == [
        {"step": 1, "loss": 4.0, "tokens_seen": 10**15},
        {"step": 2, "loss": 2.0, "tokens_seen": 2 * 10**15},
        {"step": 2, "validation/dev/loss": 2.5},
    ]


def test_a_line_of_a_thousand_values_shows_the_first_and_says_where_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsWriter(OFF, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(7, {f"epochs/{i}": i / 8 for i in range(1000)})
    assert len(read_lines(tmp_path / "metrics.jsonl")[0]) == 1001
    shown = capsys.readouterr().out.split("  ")
    assert shown[-13:] == [*(f"epochs/{i} {i / 8:.5g}" for i in range(12)), "and 988 more, in metrics.jsonl\n"]


def test_numbers_of_numpy_and_torch_and_non_finite_ones_are_valid_json(tmp_path: Path) -> None:
    values = {
        "a": np.float32(0.5),
        "b": np.int64(7),
        "c": torch.tensor(0.25),
        "d": math.nan,
        "e": math.inf,
        "f": -math.inf,
    }
    with MetricsWriter(OFF, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(1, values)  # type: ignore[arg-type]
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a": 0.5, "b": 7, "c": 0.25, "d": "nan", "e": "inf", "f": "-inf"}
    ]


def test_resume_leaves_each_step_once_and_keeps_the_superseded(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 10), resume_step=4, take=2)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["take"]) for line in lines] == [(s, 1 if s <= 4 else 2) for s in range(1, 10)]
    moved = read_lines(tmp_path / "metrics.superseded.jsonl")
    assert [(line["step"], line["take"]) for line in moved] == [(5, 1), (6, 1), (7, 1)]
    write_steps(tmp_path, range(8, 10), resume_step=7, take=3)
    moved = read_lines(tmp_path / "metrics.superseded.jsonl")
    assert [(line["step"], line["take"]) for line in moved] == [(5, 1), (6, 1), (7, 1), (8, 2), (9, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.superseded.jsonl"]


def test_resume_at_the_last_step_rewrites_nothing(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    write_steps(tmp_path, range(4, 6), resume_step=3)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
    assert not (tmp_path / "metrics.superseded.jsonl").exists()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_run_from_the_start_sets_an_older_run_aside(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 3), take=2)
    assert [line["take"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2, 2]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.superseded.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b'{"step": 2}', b"\x00\x00\x00\n", b"[1]\n", b'{"stp": 2}\n'])
def test_a_line_cut_short_by_a_crash_is_moved_out(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    supersede_after(path, step=5)
    assert path.read_bytes() == b'{"step": 1}\n'
    assert (tmp_path / "metrics.superseded.jsonl").read_bytes() == tail.rstrip(b"\n") + b"\n"


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from gpt.errors import ConfigError
from gpt.metrics import MetricsConfig, MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # writing past 1,000 bytes fails as on a full disk
config = MetricsConfig(wandb="disabled")
try:
    with MetricsWriter(config, Path(sys.argv[1]), run_config={}, resume_step=None, interactive=False) as writer:
        for step in range(100):
            writer.log(step, {"loss": 1.0})
except ConfigError as error:
    print("refused:", error)
"""
    last = python(code, tmp_path).splitlines()[-1]
    assert last.startswith(f"refused: {tmp_path}/metrics.jsonl: cannot be written (")
    supersede_after(tmp_path / "metrics.jsonl", step=10**9)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")][:3] == [0, 1, 2]


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(ConfigError, match=r"run/metrics\.jsonl: cannot be written"),
        MetricsWriter(OFF, tmp_path / "run", run_config={}, resume_step=None),
    ):
        pass


def test_configuration() -> None:
    assert MetricsConfig().wandb == "offline"
    with pytest.raises(ConfigError, match="log_every_steps = 0"):
        MetricsConfig(log_every_steps=0)
    with pytest.raises(ConfigError, match="wandb_project is empty"):
        MetricsConfig(wandb_project="")
    writer = MetricsWriter(MetricsConfig(log_every_steps=10), Path("x"), run_config={}, resume_step=None)
    assert [step for step in range(1, 31) if writer.due(step)] == [10, 20, 30]


# --- Weights & Biases: the real client

WANDB_RUN = """
import sys
from pathlib import Path
from gpt.metrics import MetricsConfig, MetricsWriter
directory, mode, first, last, resume = sys.argv[1:]
config = MetricsConfig(wandb=mode, wandb_project="tests", wandb_name="a name")
run_config = {"model": {"n_layers": 2}}
with MetricsWriter(config, Path(directory), run_config=run_config, resume_step=int(resume) or None) as writer:
    for step in range(int(first), int(last) + 1):
        writer.log(step, {"loss": 8.0 / step, "gradient_norm": float("nan")})
"""

# No key of whoever runs the tests may be found, and nothing outside the test's folder may be written.
NO_ACCOUNT = {"WANDB_API_KEY": "", "NETRC": "/nonexistent", "WANDB_BASE_URL": "http://127.0.0.1:9"}


def isolated(tmp_path: Path) -> dict[str, str]:
    return {**NO_ACCOUNT, "HOME": str(tmp_path / "home")}


def wandb_records(path: Path) -> Iterator[object]:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, offset, payload = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while offset < len(data):
        left_in_block = 32768 - offset % 32768
        if left_in_block < 7:
            offset += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        payload += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def history(path: Path) -> list[dict[str, object]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":  # type: ignore[attr-defined]
            items = record.history.item  # type: ignore[attr-defined]
            rows.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return rows


def test_offline_run_holds_every_row_resumes_under_its_id_and_can_be_synced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for first, last, resume in [(1, 5, 0), (4, 6, 3)]:
        out = python(WANDB_RUN, run, "offline", first, last, resume, environment=isolated(tmp_path))
        assert [line.split()[:2] for line in out.splitlines()] == [["step", f"{s}"] for s in range(first, last + 1)]
    run_id = (run / "wandb_run_id").read_text().strip()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    rows = [[(row["step"], row["loss"]) for row in history(path)] for path in files]
    assert rows == [[(s, 8 / s) for s in range(1, 6)], [(s, 8 / s) for s in range(4, 7)]]
    header = next(r.run for r in wandb_records(files[0]) if r.WhichOneof("record_type") == "run")  # type: ignore[attr-defined]
    assert (header.run_id, header.project, header.display_name) == (run_id, "tests", "a name")
    assert {item.key: json.loads(item.value_json) for item in header.config.update}["model"] == {"n_layers": 2}
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", *(str(f.parent) for f in files)]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=True, env={**os.environ, **isolated(tmp_path)}
    )
    assert "Would sync 2 run(s)" in found.stdout + found.stderr
    assert sorted(p.name for p in run.iterdir()) == [
        "metrics.jsonl",
        "metrics.superseded.jsonl",
        "wandb",
        "wandb_run_id",
    ]


def test_online_without_an_account_asks_nothing_and_records_offline(tmp_path: Path) -> None:
    """On a terminal, where the client would ask for a key."""
    text = on_terminal(WANDB_RUN, tmp_path / "run", "online", 1, 3, 0, environment=isolated(tmp_path))
    assert text.count("no API key is configured; run 'wandb login'") == 1
    assert "recording offline" in text
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert [row["step"] for row in history(file)] == [1, 2, 3]


def test_a_client_that_cannot_start_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where the client wants its folder")
    out = python(WANDB_RUN, tmp_path, "offline", 1, 4, 0, environment=isolated(tmp_path))
    assert out.count("Weights & Biases failed") == 1
    assert out.index("Weights & Biases failed") < out.index("step")
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 4
    run_id = (tmp_path / "wandb_run_id").read_text()
    python(WANDB_RUN, tmp_path, "offline", 1, 1, 0, environment=isolated(tmp_path))
    assert (tmp_path / "wandb_run_id").read_text() != run_id  # a run from the start is a new run there, too


def test_a_client_killed_in_the_middle_does_not_stop_the_run(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
from gpt.metrics import MetricsConfig, MetricsWriter

def children():
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [p for p in pids if f"PPid:\\t{os.getpid()}\\n" in Path(f"/proc/{p}/status").read_text()]

with MetricsWriter(MetricsConfig(), Path(sys.argv[1]), run_config={}, resume_step=None) as writer:
    writer.log(1, {"loss": 1.0})
    service = children()
    assert service, "the client has no service process"
    for pid in service:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for step in range(2, 6):
        writer.log(step, {"loss": 1.0})
        time.sleep(0.1)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("finds the client's service process in /proc")
    out = python(code, tmp_path, environment=isolated(tmp_path))
    assert out.count("Weights & Biases failed") == 1
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 5
    assert len(re.findall(r"^step", out, flags=re.M)) == 5


# --- the console

CONSOLE_RUN = """
import sys
from pathlib import Path
from gpt.metrics import MetricsConfig, MetricsWriter
config = MetricsConfig(wandb="disabled")
arguments = {"run_config": {}, "resume_step": None, "total_steps": 1200, "total_tokens": 600_000_000}
with MetricsWriter(config, Path(sys.argv[1]), **arguments) as writer:
    writer.message("model: 12 parameters")
    for step in (1, 2, 1200):
        values = {"loss": 12.5 / step, "gradient_norm": 3.14159 / step, "learning_rate": 2.5e-4, "mfu": 0.4123}
        writer.log(step, values | {"tokens_per_s": 1234.5 * step, "tokens_seen": step * 500_000, "step_s": 1.0})
        if step == 2:
            writer.message("saved a checkpoint")
    writer.log(1200, {"validation/dev/loss": 3.25})
"""


def on_terminal(code: str, *arguments: object, columns: int = 160, environment: dict[str, str] | None = None) -> str:
    """What a Python process in the repository writes to a terminal of its own."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    base = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=REPOSITORY,
        env={**base, **(environment or {})},
        start_new_session=True,
    )
    os.close(follower)
    chunks = []
    try:
        while chunk := os.read(leader, 4096):
            chunks.append(chunk)
    except OSError:
        pass  # Linux's word for the end of a terminal's output
    finally:
        os.close(leader)
    assert process.wait(timeout=100) == 0
    return b"".join(chunks).decode()


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after `text` (carriage return, line feed and erase-to-end only)."""
    lines, column = [""], 0
    for token in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            lines.append("")
        elif token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            lines[-1] = lines[-1][:column] + token + lines[-1][column + len(token) :]
            column += len(token)
    return lines


def test_a_pipe_gets_one_plain_aligned_line_a_step(tmp_path: Path) -> None:
    out = python(CONSOLE_RUN, tmp_path)
    assert "\r" not in out
    assert "\x1b" not in out
    first, *lines = out.splitlines()
    assert first == "model: 12 parameters"
    assert lines[2] == "saved a checkpoint"
    assert lines[4:] == ["step 1,200/1,200  validation/dev/loss 3.25"]
    steps = [lines[0], lines[1], lines[3]]
    assert lines[0] == (
        "step     1/1,200  loss  12.5000  gradient norm     3.14  learning rate 2.50e-04  1.23k tokens/s  "
        "MFU  41.2%   500k tokens        - left"
    )
    assert lines[3].startswith("step 1,200/1,200  loss   0.0104  gradient norm  0.00262  ")
    assert lines[3].endswith("1.48M tokens/s  MFU  41.2%   600M tokens       0s left")
    for word in ("loss", "gradient", "learning", "tokens/s", "MFU", "tokens  ", "left"):
        assert len({line.index(word) for line in steps}) == 1


def test_a_terminal_gets_a_live_line_with_messages_above(tmp_path: Path) -> None:
    text = on_terminal(CONSOLE_RUN, tmp_path)
    shown = screen(text.replace("\r\n", "\n\r"))  # the terminal driver adds the carriage returns
    assert [line.split("  ")[0] for line in shown] == [
        "model: 12 parameters",
        "saved a checkpoint",
        "step 1,200/1,200",
        "step 1,200/1,200",
        "",
    ]
    assert shown[2] == "step 1,200/1,200  validation/dev/loss 3.25"
    for field in ("loss   0.0104", "gradient norm", "learning rate", "tokens/s", "MFU", "600M tokens", "0s left"):
        assert field in shown[3]
    assert "step     2/1,200" in text  # it was there, and was written over
    assert "step     2/1,200" not in "".join(shown)


def test_eighty_columns_hold_every_figure_and_fewer_hold_the_loss(tmp_path: Path) -> None:
    narrow = screen(on_terminal(CONSOLE_RUN, tmp_path, columns=80).replace("\r\n", "\n\r"))
    assert narrow[3] == "1200/1200 loss 0.0104 grad 0.0026 lr 2.5e-4 1.48M/s MFU 41% 600M tok 0s left"
    values = {"loss": 1.5, "gradient_norm": 0.5, "learning_rate": 1e-4, "tokens_per_s": 1e4, "mfu": 0.5}
    fields = step_fields(7, values, total_steps=100)
    assert fit(fields, width=46) == "7/100 loss 1.5000 grad 0.5 lr 1.0e-4 10.0k/s"
    assert fit(fields, width=30) == "7/100 loss 1.5000 10.0k/s"
    assert fit(fields, width=20) == "7/100 loss 1.5000"
    assert fit(fields, width=5) == "7/100"
    assert fit(fields, width=0) == ""


def test_time_left_follows_the_recent_rate() -> None:
    left = TimeLeft(1000)
    assert left.update(0, now=0.0) is None
    assert left.update(10, now=5.0) == pytest.approx(495.0)
    for i in range(2, 60):  # an even rate gives an even answer
        assert left.update(10 * i, now=5.0 * i) == pytest.approx((1000 - 10 * i) / 2)
    slow = left.update(600, now=5.0 * 59 + 50)  # one slow step moves it, but not tenfold
    assert slow is not None
    assert 200 < slow < 400
    assert left.update(1000, now=400.0) == 0.0
    assert left.update(1010, now=401.0) == 0.0
    assert TimeLeft(None).update(5, now=1.0) is None


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (999.6, "1.00k"), (1000, "1.00k"), (1234, "1.23k"), (12_345, "12.3k"),
        (123_456, "123k"), (999_499, "999k"), (999_999, "1.00M"), (1_230_000, "1.23M"), (300e9, "300B"),
        (999.9e9, "1.00T"), (1.5e12, "1.50T"), (2.5e15, "2,500.00T"),
    ],
)  # fmt: skip
def test_human_count(n: float, text: str) -> None:
    assert human_count(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (7.4, "7s"),
        (59.6, "1m 00s"),
        (133, "2m 13s"),
        (3600, "1h 00m"),
        (18_240, "5h 04m"),
        (300_000, "3d 11h"),
    ],
)
def test_human_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_ends_no_run(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        console = Console(total_steps=2, total_tokens=None, interactive=False)
        console.message("one")
        console.step(1, {"loss": 2.0})
        console.close()
    assert capsys.readouterr().err == (
        "triaxial: standard output cannot be written (no space left on device); the run goes on; its directory has "
        "what it tells\n"
    )
