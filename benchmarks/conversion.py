"""Conversion: peak memory beside transformers' own, and the logits of real weights beside transformers.

    python benchmarks/conversion.py [--work DIR] [--smollm2 FOLDER] [--small] [--rounds 1] [--json FILE]

A Llama of 1.2 billion random parameters (Llama 3.2's shape) is written to DIR, imported and exported again, also to
Megatron's format and from there, each by a process of its own whose peak resident memory the system counts (ru_maxrss,
which is VmHWM). The peer loads the same folder and saves it, as a conversion by transformers does. `--small`: a tenth
of the size. FOLDER: from shared/tools/smollm2_hf.py; its logits are compared on 1,000 tokens of real text (Python's
help texts), and the loss with the one that the script's header names. The last line printed is one JSON object.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import side_by_side
import torch
from torch import Tensor

from gpt.convert.hugging_face.export import write_configs
from gpt.convert.hugging_face.names import table
from gpt.convert.weights import shapes
from gpt.files.safetensors import write_model
from gpt.model.config import ModelConfig, RopeScaling

GIB = 1 << 30
EIFFEL = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "
    "engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
)
EIFFEL_LOSS = 1.82  # nats in bf16, as the header of smollm2_hf.py has it
PEER = (
    "import sys, torch; from transformers import AutoModelForCausalLM as A; "
    "A.from_pretrained(sys.argv[1], dtype='auto', local_files_only=True).save_pretrained(sys.argv[2])"
)


@dataclass(frozen=True)
class Measured:
    """One process: its peak resident memory and how long it took."""

    peak_bytes: int
    elapsed_s: float


def llama_1b(*, small: bool) -> ModelConfig:
    """Llama 3.2 1B's shape, or a tenth of it."""
    return ModelConfig(
        vocab_size=128_256 // (4 if small else 1),
        n_ctx=131_072,
        n_layers=4 if small else 16,
        d_model=1024 if small else 2048,
        n_heads=32,
        n_kv_heads=8,
        d_ff=4096 if small else 8192,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=True,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling(factor=32.0),
    )


def write_random(folder: Path, config: ModelConfig, tokenizer: Path, dtype: torch.dtype) -> None:
    """A Hugging Face folder of random weights."""
    folder.mkdir(parents=True)
    weight_shapes = shapes(config)
    hf_shapes = {entry.hf_name: entry.shape(weight_shapes) for entry in table(config)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for name, shape in hf_shapes.items():
            noise = torch.empty(shape, dtype=dtype).normal_(0.0, 0.02, generator=generator)
            yield name, noise + 1 if "norm" in name else noise

    write_configs(folder, config, end_of_document_id=0, dtype=dtype)
    write_model(folder, tensors(), shapes=hf_shapes, dtype=dtype)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE of the help texts, the smallest there is."""
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([topics["assert"]], trainer)
    model.save(str(path))


def measure(*command: object) -> Measured:
    """Run a command; RuntimeError when it fails."""
    started_at = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(output)
    print(output.strip())
    return Measured(usage.ru_maxrss * 1024, time.perf_counter() - started_at)


def memory(work: Path, *, small: bool, rounds: int) -> dict[str, Any]:
    config = llama_1b(small=small)
    write_tokenizer(work / "tokenizer.json")
    results: dict[str, Any] = {"parameters": config.parameters}
    for dtype in (torch.bfloat16, torch.float32):
        folder, found = work / "folder", dict[str, list[Measured]]()
        write_random(folder, config, work / "tokenizer.json", dtype)
        largest = max(t.numel() for t in _meta(config)) * dtype.itemsize
        limit = 3 * largest // 2 + GIB
        triaxial = ("-m", "launch.main", "convert")
        for _ in range(rounds):
            steps: dict[str, tuple[object, ...]] = {
                "import": (*triaxial, folder, "--to", "triaxial", "--output", work / "run"),
                "export": (*triaxial, work / "run", "--to", "hf", "--output", work / "back"),
                "to_megatron": (*triaxial, work / "run", "--to", "megatron", "--output", work / "megatron"),
                "from_megatron": (*triaxial, work / "megatron", "--to", "triaxial", "--output", work / "again"),
                "transformers": ("-c", PEER, folder, work / "peer"),
            }
            for name, command in steps.items():
                found.setdefault(name, []).append(measure(*command))
            for made in ("run", "back", "megatron", "again", "peer"):
                shutil.rmtree(work / made)
        shutil.rmtree(folder)
        name = str(dtype).removeprefix("torch.")
        results[name] = {"largest_tensor_bytes": largest, "limit_bytes": limit}
        for step, all_of in found.items():
            peak = int(median(m.peak_bytes for m in all_of))
            results[name][step] = {**asdict(all_of[-1]), "peak_bytes": peak, "of_limit": round(peak / limit, 3)}
            print(f"{name}, {step}: {peak / GIB:.2f} GiB at most, limit {limit / GIB:.2f} GiB")
    return results


def _meta(config: ModelConfig) -> list[Tensor]:
    return [torch.empty(shape, device="meta") for shape in shapes(config).values()]


@torch.inference_mode()
def real_model(folder: Path, work: Path) -> dict[str, Any]:
    """SmolLM2 imported, beside transformers."""
    import transformers

    from launch.runs.saved_run import load_run

    measured = measure("-m", "launch.main", "convert", folder, "--to", "triaxial", "--output", work / "smollm2")
    loaded = load_run(work / "smollm2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encode = loaded.saved.tokenizer.encode
    text = "\n".join(topics.values())[:20_000]
    same_ids = encode(text) == transformers.AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    tokens = torch.tensor([encode(text)[:1000]])
    a, b = loaded.model(tokens), theirs(tokens).logits
    eiffel = torch.tensor([encode(EIFFEL)])
    half = load_run(work / "smollm2", dtype=torch.bfloat16)
    losses = {
        name: float(torch.nn.functional.cross_entropy(model(eiffel)[0, :-1].float(), eiffel[0, 1:]))
        for name, model in (("float32", loaded.model), ("bfloat16", half.model))
    }
    return {
        "tokens": tokens.numel(),
        "same_ids": same_ids,
        "max_relative_logit_error": float((a - b).abs().max() / b.abs().max()),
        "other_choices": int((a.argmax(-1) != b.argmax(-1)).sum()),
        "eiffel_loss_nats": losses,
        "eiffel_loss_expected": EIFFEL_LOSS,
        "import": asdict(measured),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder for 30 GB (default: a temporary one)")
    parser.add_argument("--smollm2", type=Path, metavar="FOLDER")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()

    def both() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=args.work) as work:
            report: dict[str, Any] = {}
            if args.smollm2 is not None:
                report["smollm2"] = real_model(args.smollm2, Path(work))
            report["memory"] = memory(Path(work), small=args.small, rounds=args.rounds)
            return report

    return side_by_side.report_result(both, args.json)


if __name__ == "__main__":
    sys.exit(main())
