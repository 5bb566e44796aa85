"""A run keeps the versions that it was started with."""

import json
import subprocess

import torch

from launch.runs.software import SOFTWARE, commit_of, keep_software


def test_versions_are_kept_in_the_run_directory(tmp_path):
    keep_software(tmp_path)
    kept = json.loads((tmp_path / SOFTWARE).read_text())
    assert kept["torch"] == torch.__version__
    assert kept["triaxial"]
    assert kept["python"].startswith("3.")


def test_a_changed_checkout_is_marked(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True, check=True
        ).stdout

    assert commit_of(tmp_path) is None, "no checkout"
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert commit_of(tmp_path) == commit[:12]
    (tmp_path / "file").write_text("b")
    assert commit_of(tmp_path) == f"{commit[:12]}-dirty"
