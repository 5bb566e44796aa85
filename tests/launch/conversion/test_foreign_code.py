"""No code of a downloaded folder runs, whichever file names it and whoever answers on standard input."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
EVIL = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig): pass
class EvilModel(LlamaForCausalLM): pass
class EvilTokenizer(PreTrainedTokenizerFast): pass
"""
MAPS = {
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}},
    "config.json": {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}},
    "generation_config.json": {"auto_map": {"AutoConfig": "evil.EvilConfig"}},
    "processor_config.json": {"parts": [{"auto_map": {"AutoProcessor": "evil.EvilTokenizer"}}]},
}

pytest.importorskip("transformers", reason="needs the extra 'hf'")


@pytest.fixture(scope="module")
def exported_folder(made: Any, triaxial: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that imports without an error."""
    folder: Path = tmp_path_factory.mktemp("exported") / "folder"
    assert triaxial("convert", made.directory, "--to", "hf", "--output", folder, "--logits", "none") == 0
    return folder


def poisoned(exported_folder: Path, tmp_path: Path, name: str) -> tuple[Path, Path]:
    folder, marker = shutil.copytree(exported_folder, tmp_path / "folder"), tmp_path / "marker"
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**settings, **MAPS[name]}))
    return folder, marker


@pytest.mark.parametrize("terminal", [False, True])
def test_yes_on_standard_input_runs_nothing(exported_folder: Path, tmp_path: Path, terminal: bool) -> None:
    folder, marker = poisoned(exported_folder, tmp_path, "tokenizer_config.json")
    command = [sys.executable, "-m", "launch.main", "convert", folder, "--to", "triaxial", "--output", tmp_path / "run"]
    leader, follower = pty.openpty() if terminal else os.pipe()
    writer, reader = (leader, follower) if terminal else (follower, leader)
    os.write(writer, b"y\ny\n")
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, error = process.communicate(timeout=200)
    for descriptor in (leader, follower):
        os.close(descriptor)
    assert (process.returncode, out) == (2, "")
    assert error.count("\n") == 1
    assert "tokenizer_config.json has the key auto_map: it asks for remote code, which is never run" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    assert not marker.exists()


@pytest.mark.parametrize("name", MAPS)
def test_every_json_file_is_searched(exported_folder: Path, tmp_path: Path, name: str, triaxial: Any) -> None:
    folder, marker = poisoned(exported_folder, tmp_path, name)
    with pytest.raises(ConfigError, match=f"{name} has the key auto_map: it asks for remote code"):
        triaxial("convert", folder, "--to", "triaxial", "--output", tmp_path / "run")
    assert not marker.exists()
