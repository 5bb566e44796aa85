"""Each cell of the table in docs/guides/reliability/signals.md: a signal, its target, the phase, once or twice.

`make rehearse ARGS="-k test_every_cell"` runs all of them; a cell replays alone by its id, such as
`-k "save-SIGTERM-rank-twice"`. `make test` runs cells in which each signal, target, phase and number occurs.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.processes.rank_process import FIRST_STEP_S

HERE = Path(__file__).resolve().parents[1]
PROGRAM = HERE / "signal_program.py"
STEPS = 12
WORDS = ["--train.total_tokens", 512 * STEPS, "--train.evaluate_every_tokens", 512 * 6]
SIGNALS = ("SIGHUP", "SIGTERM", "SIGUSR1", "SIGINT")
TARGETS = ("launcher", "rank", "group", "step")
PHASES = {"interpreter": 0, "import": 0, "join": 0, "compile": 0, "step": 6, "evaluation": 6, "save": 4, "finish": 12}
COUNTS = ("once", "twice")
CELLS = list(itertools.product(PHASES, SIGNALS, TARGETS, COUNTS))
COVERING = (
    ("interpreter", "SIGTERM", "rank", "twice"),
    ("import", "SIGTERM", "launcher", "twice"),
    ("join", "SIGHUP", "group", "once"),
    ("compile", "SIGUSR1", "step", "once"),
    ("step", "SIGINT", "rank", "once"),
    ("evaluation", "SIGHUP", "launcher", "once"),
    ("save", "SIGINT", "launcher", "twice"),
    ("save", "SIGUSR1", "group", "twice"),
    ("finish", "SIGTERM", "step", "once"),
)


@dataclass(frozen=True)
class Cell:
    phase: str
    signal: str
    target: str
    count: str

    def __str__(self) -> str:
        return f"{self.phase}-{self.signal}-{self.target}-{self.count}"

    @property
    def saves(self) -> bool:
        """Whether the run saves if it has something to save. A second Ctrl-C ends it at once."""
        return self.signal != "SIGINT" or self.count == "once"

    @property
    def statuses(self) -> tuple[int, ...]:
        """The exit status of the launcher, by the table."""
        if self.signal == "SIGINT":
            if self.phase == "finish":
                return (0,) if self.saves else (0, 130)  # launch.torchrun sees the word of the end
            return (130,)
        if self.target == "step" and self.phase == "interpreter":  # rank 0 may handle signals already
            return (75, 128 + signal.Signals[self.signal])
        return (0,) if self.phase == "finish" else (75,)


@pytest.fixture(scope="module")
def undisturbed(tiny_corpus, launched, tmp_path_factory):
    with launched.Launched(tiny_corpus.recipe, tmp_path_factory.mktemp("plain") / "run", *WORDS, "--nproc", 2) as job:
        assert job.end() == 0, job.errors()
    return job.run


@pytest.fixture(autouse=True)
def no_signal_ignored():
    """Ignore no signal, as pytest does under nohup and as a job in the background: its children would inherit that."""
    ignored = [n for n in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.rehearse
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", list(itertools.starmap(Cell, CELLS)), ids=str)
def test_every_cell(cell, tiny_corpus, launched, listening, undisturbed, tmp_path):
    job = play(cell, tiny_corpus, launched, listening, tmp_path)
    check(cell, job, launched)
    if cell.count == "once":
        return
    with launched.Launched(tiny_corpus.recipe, job.run, *WORDS, "--nproc", 2) as again:
        assert again.end() == 0, again.errors()
    assert launched.losses(job.run) == launched.losses(undisturbed)
    assert launched.saved(job.run) == launched.saved(undisturbed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", list(itertools.starmap(Cell, COVERING)), ids=str)
def test_a_signal(cell, tiny_corpus, launched, listening, tmp_path):
    check(cell, play(cell, tiny_corpus, launched, listening, tmp_path), launched)


def play(cell, corpus, launched, listening, tmp_path):
    """Run until the phase, send the signal, and wait for the end; returns the job."""
    folder = tmp_path / "cell"
    folder.mkdir()
    environment = {"SIGNAL_CELL": str(folder), "SIGNAL_PHASE": cell.phase, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    command, more = [sys.executable, str(PROGRAM)], ["--nproc", 2]
    if cell.target == "step":
        environment |= {"TRIAXIAL_SAVED_FILE": str(folder / "saved")}
        command, more = [sys.executable, "-m", "launch.torchrun", "--nproc-per-node=2", str(PROGRAM)], []
    with launched.Launched(
        corpus.recipe, tmp_path / "run", *WORDS, *more, command=command, environment=environment, new_session=True
    ) as job:
        job.wait_for((folder / "waits").exists, what=cell.phase)
        time.sleep(0.2)  # for the other rank to come as far as it can
        for _ in range(1 + (cell.count == "twice")):
            send(cell, job, listening, waiting=int((folder / "waits").read_text()))
            time.sleep(0.1)
        if not PHASES[cell.phase]:
            time.sleep(2 * FIRST_STEP_S)  # else the ranks would do the first step, and save it
        (folder / "go").touch()
        job.status = job.end()
    return job


def send(cell, job, listening, *, waiting):
    """Send it to the rank that waits if the signal comes twice, else to its peer."""
    number = signal.Signals[cell.signal]
    if cell.target == "launcher":
        os.killpg(job.process.pid, number)  # a terminal signals the group of the launcher
        return
    if cell.target == "step":  # Slurm signals every process of a step
        for pid in reversed(listening.family_of(job.process.pid)):
            quietly(os.kill, pid, number)
        return
    (peer,) = set(job.ranks().values()) - {waiting} or {waiting}
    pid = waiting if cell.count == "twice" else peer
    quietly(os.killpg if cell.target == "group" else os.kill, pid, number)


def quietly(kill, pid, number):
    with contextlib.suppress(ProcessLookupError):  # it has ended by the first one
        kill(pid, number)


def check(cell, job, launched):
    """Check the row of the table: exit status, checkpoints, messages, and that nothing is left."""
    said = job.shown() + job.errors()
    assert job.status in cell.statuses, said
    checkpoints = sorted(path.name for path in (job.run / "checkpoints").glob("*"))
    assert not cell.saves or all(name.startswith("step-") for name in checkpoints), "half a checkpoint"
    reached = PHASES[cell.phase]
    by_hand = cell.signal == "SIGINT"
    if cell.saves and reached:
        last = job.step()
        assert last in (reached, reached + 1), said
        assert checkpoints[-1] == f"step-{last:09}", said
        ending = f"interrupted: step {last} is saved" if by_hand else f"stopped by a signal at step {last}"
        assert cell.phase == "finish" or ending in said
    if not reached:
        assert not checkpoints
    if cell.target == "step" and cell.phase not in ("interpreter", "finish"):
        words = "interrupted" if by_hand else "saved" if reached else "stopped"
        assert (job.logs / "cell" / "saved").read_text().startswith(words)
    if not by_hand or cell.target != "step":
        assert "Traceback" not in said
        assert not (job.run / ".owner.json").exists()
    assert "death signal" not in said
    assert not list(job.temporary.glob("triaxial_*"))
    assert not (job.run / "hangs").exists(), said
    assert not launched.left_behind(job.run)
    if (job.run / "events.jsonl").exists():
        kinds = [json.loads(line)["kind"] for line in (job.run / "events.jsonl").read_text().splitlines()]
        assert "restart" not in kinds


@pytest.mark.timeout(200)
def test_ctrl_c_at_a_terminal_saves_and_the_next_start_continues(tiny_corpus, launched, tmp_path):
    """A terminal signals all processes of the command, W&B's too."""
    words = ["--train.total_tokens", 512 * 100_000, "--checkpoint.every_tokens", 512 * 4, "--metrics.wandb", "offline"]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *words, new_session=True) as job:
        job.wait_for(lambda: job.step() > 5, what="step 6")
        os.killpg(job.process.pid, signal.SIGINT)
        assert job.end() == 130, job.errors()
        said = job.shown() + job.errors()
    last = job.step()
    assert f"interrupted: step {last:,} is saved; run the same command again to continue" in said
    assert "finishing this step, then saving; Ctrl-C again ends at once" in said
    assert "Traceback" not in said
    assert launched.saved(job.run)
    (newest,) = (job.run / "checkpoints").glob(f"step-{last:09}")
    for saved in (job.run / "checkpoints").glob("step-*"):
        if saved == newest:
            shutil.rmtree(saved)  # as if it had not been saved
    words[1] = 512 * (last + 1)
    with launched.Launched(tiny_corpus.recipe, job.run, *words, "--schedule.decay_tokens", 512 * 10**6) as again:
        assert again.end() == 0, again.errors()
    assert f"the run had reached step ~{last:,}, but the newest checkpoint is of step" in again.shown() + again.errors()
