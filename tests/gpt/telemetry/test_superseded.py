"""Lines of steps that will be taken again move to another file; only the end of a long file is read."""

import json
from pathlib import Path

import pytest

from gpt.telemetry import superseded
from gpt.telemetry.superseded import supersede_after

DEEP = b"[" * 200_000 + b"\n"


@pytest.mark.parametrize(
    "tail", [b'{"step": 2, "lo', b'{"step": 2}', b"\x00\x00\x00\n", b"[1]\n", b'{"stp": 2}\n', DEEP]
)
def test_a_line_that_a_crash_cut_short_is_moved_away(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    supersede_after(path, step=5)
    assert path.read_bytes() == b'{"step": 1}\n'
    assert (tmp_path / "metrics.superseded.jsonl").read_bytes() == tail.rstrip(b"\n") + b"\n"


@pytest.mark.parametrize("step", [10**400, -1, 2**70])
def test_a_step_that_no_run_reaches_is_a_damaged_line(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": %d}\n{"step": 2}\n' % step)
    supersede_after(path, step=2)
    assert [line["step"] for line in [json.loads(line) for line in path.read_text().splitlines()]] == [1, 2]


def test_a_resume_reads_the_end_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parsed = tmp_path / "metrics.jsonl", []
    real = superseded._step_of
    monkeypatch.setattr(superseded, "_step_of", lambda line: parsed.append(line) or real(line))
    monkeypatch.setattr(superseded, "TAIL_BYTES", 4096)
    whole = b"".join(b'{"step": %d, "loss": 1.0}\n' % step for step in range(20_000))
    for resume_step, most in ((20_000, 200), (19_990, 400), (19_000, 4000), (9, 50_000), (-1, 50_000)):
        path.write_bytes(whole)
        (tmp_path / "metrics.superseded.jsonl").unlink(missing_ok=True)
        parsed.clear()
        supersede_after(path, step=resume_step)
        assert len(parsed) < most
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: resume_step + 1])
        if resume_step < 19_999:
            assert path.read_bytes() + (tmp_path / "metrics.superseded.jsonl").read_bytes() == whole
