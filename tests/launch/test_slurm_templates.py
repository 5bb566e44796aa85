"""The sbatch templates alone: programs of the tests stand for Slurm's, and say how they were called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "slurm" / "train.sbatch"
PREPARE = ROOT / "slurm" / "prepare.sbatch"


def test_a_file_to_source_may_read_variables_that_are_not_set_and_gets_no_arguments(tmp_path):
    """`conda activate` and `module load` read some; a conda environment must not be named after the recipe."""
    setup = tmp_path / "setup.sh"
    setup.write_text(': "$NOT_SET"\n[[ $# -eq 0 ]] || return 1\n')
    variables = {"TRIAXIAL_SETUP": str(setup), "TRIAXIAL_PYTHON": "echo"}
    variables |= {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "2"}
    words = ["bash", str(PREPARE), "my.toml", "--output.folder", "a b"]
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" --workers 1 my.toml --output.folder a b\n")


@pytest.mark.parametrize("template", [TEMPLATE, PREPARE])
def test_a_template_without_a_recipe_says_what_it_wants(template):
    result = subprocess.run(["bash", str(template)], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    name = f"slurm/{template.name}"
    assert result.stderr == f"{name}: the recipe is missing. Use: sbatch {name} RECIPE [--section.key VALUE ...]\n"


@pytest.mark.parametrize(
    ("word", "excused"), [("saved after a signal", "1"), ("stopped", "1"), ("failed", ""), ("started", ""), ("", "")]
)
def test_the_training_template_says_whether_a_signal_ended_the_start_before(tmp_path, word, excused):
    """Replace Slurm's srun by one of this test, which the template starts."""
    (tmp_path / "srun").write_text(
        '#!/bin/bash\necho "after stop: ${TRIAXIAL_AFTER_STOP-}"; test ! -e "$TRIAXIAL_SAVED_FILE"\n'
    )
    (tmp_path / "srun").chmod(0o755)
    if word:
        (tmp_path / "triaxial-7").mkdir()
        (tmp_path / "triaxial-7" / "saved").write_text(f"{word}\n")
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    settings |= {"SLURM_JOB_NODELIST": "n1", "TRIAXIAL_PYTHON": sys.executable, "TRIAXIAL_PREFLIGHT": "no"}
    result = subprocess.run(
        ["bash", str(TEMPLATE), "recipe"], env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == [f"after stop: {excused}"]


@pytest.mark.parametrize(
    ("saved", "before", "counted"), [("failed\n", 2, 3), ("failed\n/runs/x\n", 3, 0), ("", 2, 3), ("", 3, 4)]
)
def test_starts_that_fail_before_rank_0_has_begun_are_counted(tmp_path, saved, before, counted):
    """Replace srun, in which rank 0 and the launchers leave their words, and scontrol. The fourth in a row ends it."""
    (tmp_path / "srun").write_text(f'#!/bin/bash\nprintf {saved!r} >"$TRIAXIAL_SAVED_FILE"; exit 1\n')
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    (tmp_path / "triaxial-7").mkdir()
    (tmp_path / "triaxial-7" / "without_rank_0").write_text(f"{before}\n")
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    settings |= {"SLURM_JOB_NODELIST": "n1", "TRIAXIAL_PYTHON": sys.executable, "TRIAXIAL_PREFLIGHT": "no"}
    command = ["bash", str(TEMPLATE), "recipe"]
    result = subprocess.run(command, env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True)
    assert "training failed with status 1; see" in result.stdout + result.stderr
    assert (tmp_path / "triaxial-7" / "without_rank_0").read_text() == f"{counted}\n"
    assert ("scontrol requeue 7" in result.stdout) is (counted < 4), result.stderr


@pytest.mark.parametrize(("restarts", "requeued"), [("0", False), ("2", True)])
def test_a_bad_node_ends_the_first_start_and_requeues_a_later_one(tmp_path, restarts, requeued):
    """Replace srun and scontrol by programs of this test: the first finds a bad node, the second says what it got."""
    (tmp_path / "srun").write_text(
        '#!/bin/bash\n[[ "$*" == *" preflight "* ]] && echo n2 >triaxial-7/bad_nodes; exit 1\n'
    )
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    settings |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": restarts, "TRIAXIAL_PYTHON": sys.executable}
    command = ["bash", str(TEMPLATE), "recipe"]
    result = subprocess.run(command, env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True)
    assert "failed on n2; see" in result.stderr
    assert ("scontrol requeue 7" in result.stdout) is requeued
    assert ("bad nodes: n2; training failed with status 1" in result.stdout) is requeued
    assert result.returncode == (0 if requeued else 1), "that of scontrol, which replaces the script"


@pytest.mark.parametrize(("up", "left_out"), [("n1 n2 n3", True), ("n1 n2", False)])
def test_a_blamed_node_is_left_out_if_enough_others_are_up(tmp_path, up, left_out):
    """srun fails after it has left a verdict; scontrol and sinfo are programs of this test that answer for Slurm."""
    hangs = tmp_path / "run" / "hangs" / "now"
    hangs.mkdir(parents=True)
    programs = {
        "srun": f'echo -e "started\\n{tmp_path}/run" >"$TRIAXIAL_SAVED_FILE"; echo n2 >{hangs}/blamed_nodes; exit 1',
        "sinfo": f"printf '%s\\n' {up}",
        "scontrol": 'case "$1 $2" in "show hostnames") printf "n1\\nn2\\n" ;; "--oneliner show") '
        'echo "JobId=7 ExcNodeList=n9 Name=x" ;; *) echo "scontrol $*" ;; esac',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    settings |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_PARTITION": "p", "TRIAXIAL_PREFLIGHT": "no"}
    command = ["bash", str(TEMPLATE), "recipe"]
    result = subprocess.run(command, env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "scontrol requeue 7\n" in result.stdout
    assert ("requeued without n2, which the verdict blames" in result.stdout) is left_out
    assert ("scontrol update JobId=7 ExcNodeList=n9,n2" in result.stdout) is left_out
