"""The inputs of `triaxial generate --input`: a file of prompts, made into jobs, and what is written of their fields."""

import json
import tempfile
from functools import cache
from pathlib import Path

from fuzzing import Target

from gpt.model.config import ModelConfig
from gpt.tokenizer.special_tokens import own_special_tokens
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from launch.generation.jobs import make_jobs
from launch.generation.prompt_file import read_lines, write_lines

CONFIG = ModelConfig(vocab_size=400, n_ctx=64, n_layers=1, d_model=8, n_heads=2)
LINES = [
    {"id": "a", "prompt": "a text of words", "max_new_tokens": 5, "seed": 3},
    {"prompt": "", "note": ["kept", {"as": 0.5}], "id": None},
    {"prompt": "numbers 0123 é"},
]


@cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "x.model"
        train_sentencepiece(iter(["a text of words and of 0123456789 numbers"] * 3), path, vocab_size=300)
        return load_tokenizer(path)


def write(folder: Path) -> None:
    tokenizer()
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))


def read(folder: Path) -> None:
    lines = read_lines(folder / "prompts.jsonl")
    special = own_special_tokens(tokenizer())
    jobs = make_jobs(lines, tokenizer(), special, CONFIG, max_new_tokens=None, seed=1, num_samples=2)
    write_lines(folder.parent / "out.jsonl", [job.fields for job in jobs])
    for line in (folder.parent / "out.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: 1 / 0)  # NaN is no JSON


TARGETS = (Target("generation_input", write, read, cases=150),)
