"""Tokens/s of generation beside transformers' generate, on the same real model, and whether the tokens are the same.

    python benchmarks/generation.py --hf FOLDER --run RUN [--rounds 5] [--new-tokens 512] [--threads 2]
        [--cases fp32-1 fp32-8 ...] [--json FILE]

FOLDER is a model of Hugging Face, such as shared/tools/smollm2_hf.py writes, RUN what `triaxial convert` made of it.
Greedy, prompts of 32 tokens of Python's help texts ("uneven": of 16 to 72), no stop token. For each case, a precision
and a batch, both libraries have a process of their own with the same threads; they take turns. The time is that of a
whole call, the prompts too.
The last line printed is one JSON object.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import side_by_side

from gpt.errors import ConfigError

CASES = {
    "fp32-1": ("float32", [32]),
    "fp32-8": ("float32", [32] * 8),
    "fp32-8-uneven": ("float32", [16, 24, 32, 40, 48, 56, 64, 72]),
    "bf16-1": ("bfloat16", [32]),
    "bf16-8": ("bfloat16", [32] * 8),
    "bf16-8-uneven": ("bfloat16", [16, 24, 32, 40, 48, 56, 64, 72]),
}


def prompts_of(tokenizer: Any, lengths: list[int]) -> list[list[int]]:
    """The beginnings of as many help texts, cut at these numbers of tokens."""
    texts = (text for _, text in sorted(topics.items()) if len(text) > 1000)
    return [
        tokenizer.encode(text.strip())[:length] for text, length in zip(itertools.cycle(texts), lengths, strict=False)
    ]


def ours(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import torch

    from gpt.inference.cpu_model import packed
    from gpt.inference.generation import generate
    from gpt.inference.model import LocalModel
    from launch.runs.saved_run import DTYPES, load_run

    torch.set_num_threads(args.threads)
    dtype, lengths = CASES[args.case]
    loaded = load_run(args.run, dtype=DTYPES[dtype])
    model = packed(LocalModel(loaded.model), rows=len(lengths))  # as `triaxial generate` does
    prompts, n_ctx = prompts_of(loaded.saved.tokenizer, lengths), loaded.saved.model_config.n_ctx

    def block(new_tokens: int = args.new_tokens) -> dict[str, Any]:
        results = generate(model, prompts, n_ctx=n_ctx, max_new_tokens=new_tokens)
        return {"tokens": [result.tokens for result in results], "log_probs": [r.log_probs for r in results]}

    block(8)
    return block


def theirs(args: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    import torch
    import transformers

    from launch.runs.saved_run import open_run

    torch.set_num_threads(args.threads)
    dtype, lengths = CASES[args.case]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.hf, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None  # both go on to the last token
    model.generation_config.pad_token_id = 0
    prompts = prompts_of(open_run(args.run).tokenizer, lengths)
    width = max(map(len, prompts))
    inputs = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def block(new_tokens: int = args.new_tokens) -> dict[str, Any]:
        found = model.generate(inputs, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
        return {"tokens": found[:, width:].tolist()}

    block(8)
    return block


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Every case; ratios are of tokens/s."""
    cases: dict[str, Any] = {}
    for case in args.cases:
        words = ["--hf", args.hf, "--run", args.run, "--case", case, "--threads", args.threads]
        words += ["--new-tokens", args.new_tokens]
        commands = {
            name: [sys.executable, __file__, *map(str, words), "--contender", name, "serve"]
            for name in ("triaxial", "transformers")
        }
        rounds = side_by_side.alternate(
            commands,
            rounds=args.rounds,
            threads=args.threads,
            report=lambda text, case=case: print(f"{case}: {text}", flush=True),
        )
        spans, processor = (
            {name: [answers[name][kind] for answers in rounds] for name in commands} for kind in ("elapsed_s", "cpu_s")
        )
        tokens = len(CASES[case][1]) * args.new_tokens
        both = [rounds[0][name]["tokens"] for name in commands]
        cases[case] = {
            **{f"{name}_tokens_per_s": tokens / statistics.median(spans[name]) for name in commands},
            "times_as_fast": side_by_side.speed_ratios(spans, "triaxial")["transformers"],
            "times_less_processor_time": side_by_side.speed_ratios(processor, "triaxial")["transformers"],
            "same_tokens_until": [agreement(mine, other) for mine, other in zip(*both, strict=True)],
            "peak_memory_bytes": {name: rounds[-1][name]["peak_memory_bytes"] for name in commands},
        }
        print(f"{case}: {cases[case]}", flush=True)
    return {
        "processor": side_by_side.processor(),
        "threads": args.threads,
        "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "cases": cases,
    }


def agreement(ours: list[int], theirs: list[int]) -> int:
    """The number of tokens before the first that differs."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(ours))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("serve", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        build = {"triaxial": ours, "transformers": theirs}[args.contender]
        side_by_side.serve(lambda: build(args))
        return 0

    def measure() -> dict[str, Any]:
        if args.json is not None:
            side_by_side.check_writable(args.json)
        if not args.hf.is_dir():
            raise ConfigError(f"--hf {args.hf}: no such folder; shared/tools/smollm2_hf.py writes one")
        return compare(args)

    return side_by_side.report_result(measure, args.json)


if __name__ == "__main__":
    sys.exit(main())
