"""Files of post-training: rollouts, rankings next to token files, adapters of PEFT, checkpoints with adapters."""

import hashlib
import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from fuzzing import Target
from mutations import change_value, mutate
from target_checkpoints import damage_signed, refuse_skipped
from target_models import GPT3, LLAMA, random_run

from gpt.adapters.config import AdapterConfig, adapter_of, adapter_shapes
from gpt.convert.hugging_face.peft import peft_shapes, write_peft
from gpt.model.config import ModelConfig
from gpt.post_training.ppo.episodes import make_episodes
from gpt.post_training.ppo.rollout_files import discard_other_parts, has_part, read_rollouts, write_part
from gpt.post_training.ppo.rollouts import SampledResponse
from gpt.post_training.ranking_accuracy import ranking_report
from gpt.token_files.files import TokenFileWriter
from launch.conversion.peft import export_adapter, import_adapter
from launch.rewards.report import report_lines
from launch.rewards.token_files import ranked_prompts
from launch.runs.saved_run import load_run, open_run

ADAPTER = AdapterConfig(rank=2, alpha=6, targets=("blocks.*.attention.q", "blocks.1.mlp.down"))


# ---- rollouts --------------------------------------------------------------------------------------------------------


def write_rollouts(folder: Path) -> None:
    """Two parts of four episodes."""
    for first in (0, 4):
        prompts = [[7] * (1 + i) for i in range(4)]
        responses = [SampledResponse([first + i, 2], [-0.5, -1.0 - i], True) for i in range(4)]
        made = make_episodes(first, prompts, responses, seq_len=8, version=3)
        write_part(folder, made, temperature=1.0, sampled_by="me")


def damage_rollouts(folder: Path, rng: Random) -> list[str]:
    """Damage the files; in half of the cases, the record then has the right digest."""
    changes = mutate(folder, rng)
    for path in folder.glob("*.safetensors") if rng.random() < 0.5 else ():
        record = path.with_suffix(".json")
        if any(
            one.is_symlink() or not one.is_file() for one in (path, record)
        ):  # a pipe or a device, put there as damage
            continue
        try:
            value = json.loads(record.read_text())
            value["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            record.write_text(json.dumps(value))
            changes.append(f"{path.name} signed")
        except (OSError, ValueError, TypeError, RecursionError):
            continue
    return changes


def use_rollouts(folder: Path) -> None:
    """As a run that resumes in an iteration reads what it has sampled."""
    found = read_rollouts(folder, 2, 4, temperature=1.0)
    batch = found.trimmed(2).batch()
    assert batch.targets.shape == batch.inputs.shape
    assert len(found.prompts()) == len(found.responses()) == 4
    has_part(folder, 0, n=4, version=3, sampled_by="me")
    discard_other_parts(folder, n=4, version=3, sampled_by="me")


# ---- rankings next to token files ------------------------------------------------------------------------------------


def write_rankings(folder: Path) -> None:
    """Token files of three rankings, each of two answers, with their marks and the side file."""
    for name, values in (("train", [5, 6, 7, 2, 5, 6, 2]), ("train_marks", [0, 0, 0, 1, 0, 0, 2])):
        with TokenFileWriter(folder / name, vocab_size=320) as file:
            for _ in range(3):
                file.add_document(np.array(values))
    line = {"prompt_id": "p", "labeller": "Anna", "levels": [0, 1], "scores": [0.5, None], "models": ["a", "b"]}
    lines = [json.dumps({**line, "id": f"p#{n}", "prompt_id": f"p{n}"}) for n in range(3)]
    (folder / "train_rankings.jsonl").write_text("\n".join(lines) + "\n")


def use_rankings(folder: Path) -> None:
    """As `triaxial score --rankings PREFIX` reads them and reports on rewards."""
    prompts = ranked_prompts(folder / "train", tokenizer=folder / "x", fingerprint="0")
    rewards = [np.arange(len(prompt.completions), dtype=np.float64) for prompt in prompts]
    for line in report_lines(ranking_report(prompts, rewards)):
        line.encode()


def damage_rankings(folder: Path, rng: Random) -> list[str]:
    """Mostly the side file: the token files have their own targets."""
    if rng.random() < 0.3:
        return mutate(folder, rng)
    path = folder / "train_rankings.jsonl"
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    value, change = change_value(json.loads(lines[number]), rng)
    try:
        lines[number] = json.dumps(value, ensure_ascii=False)
        path.write_text("\n".join(lines) + "\n", errors="surrogatepass")
    except (ValueError, RecursionError):
        path.write_text("[" * 100_000)
    return [f"line {number + 1}{change}"]


# ---- adapters --------------------------------------------------------------------------------------------------------


def adapters(config: ModelConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {name: torch.randn(shape) for name, shape in adapter_shapes(config, ADAPTER).items()}


def write_folder(folder: Path, *, config: ModelConfig) -> None:
    """A base run and PEFT's files; and for `adapter_opened` the run that both make."""
    random_run(folder, config)
    (folder / "peft").mkdir()
    assert peft_shapes(config, ADAPTER)
    write_peft(folder / "peft", config, ADAPTER, adapters(config), base="base")


def damage_peft(folder: Path, rng: Random) -> list[str]:
    return mutate(folder / "peft", rng)


def import_peft(folder: Path) -> None:
    """As `triaxial convert PEFT --to triaxial --base RUN`, and back."""
    base = open_run(folder / "run")
    import_adapter(folder / "peft", base, folder.parent / "made")
    export_adapter(open_run(folder.parent / "made"), folder.parent / "back", base=None)


def write_run_with_adapters(folder: Path) -> None:
    """A run directory whose newest checkpoint has adapters."""
    with tempfile.TemporaryDirectory() as work:
        write_folder(Path(work), config=LLAMA)
        import_adapter(Path(work) / "peft", open_run(Path(work) / "run"), folder / "run")
    (checkpoint,) = (folder / "run" / "checkpoints").glob("step-*")
    assert adapter_of(json.loads((checkpoint / "state.json").read_text())) == ADAPTER, asdict(ADAPTER)


def open_adapters(folder: Path) -> None:
    """As `triaxial generate` opens the run, and `triaxial convert` exports its adapters."""
    loaded = load_run(folder / "run")
    refuse_skipped(note for note in loaded.saved.notes if "skipped" in note)
    loaded.model(torch.zeros(1, 4, dtype=torch.long))
    export_adapter(loaded.saved, folder.parent / "back", base=None)


TARGETS = (
    Target("rollouts", write_rollouts, use_rollouts, cases=80, damage=damage_rollouts),
    Target("rankings_side_file", write_rankings, use_rankings, cases=80, damage=damage_rankings),
    Target("peft_llama", partial(write_folder, config=LLAMA), import_peft, cases=40, damage=damage_peft),
    Target("peft_gpt2", partial(write_folder, config=GPT3), import_peft, cases=20, damage=damage_peft),
    Target(
        "checkpoint_adapters", write_run_with_adapters, open_adapters, cases=30, damage=partial(damage_signed, step=0)
    ),
)
