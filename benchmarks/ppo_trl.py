"""Episodes/s of PPO beside TRL's PPOTrainer, on the CPU, alternating in one run.

    python -m venv VENV && VENV/bin/pip install torch 'trl==0.21.0' 'transformers<4.56' numpy
    python benchmarks/ppo_trl.py --peer VENV/bin/python --model SMOLLM2_135M_INSTRUCT [--rounds 5] [--json FILE]

The policy is SmolLM2-135M-Instruct. It answers the instructions of self-instruct's seed tasks and ends most answers by
itself. Reference, value and reward model are the same network, the last two with a scalar head drawn from a seed. Both
sides start from the same weights. In each round they get the same prompts, and sample their own answers: the lengths
are reported, and tokens/s beside episodes/s. A block is one iteration of one epoch: sample, score, and make an update
for each minibatch. `--layers N` keeps the first N layers. Their answers mean nothing and never end, so both sides end
them at the length of the task's human answer; with `--given-lengths` those of the whole model too.
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
import torch
import torch.distributed as dist
from ppo_trl_peer import END, length_key, scalar_head
from torch._C._distributed_c10d import HashStore

from gpt.convert.hugging_face.source import open_source
from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.skipped import SkippedData
from gpt.errors import import_extra
from gpt.model.config import ModelConfig
from gpt.post_training.ppo.config import PPOConfig, RewardSource
from gpt.post_training.ppo.models import PPOModels, PPOSetup
from gpt.post_training.ppo.objectives import Value
from gpt.post_training.ppo.rewards import ScalarReward
from gpt.post_training.ppo.sampling import RolloutSource
from gpt.post_training.ppo.scoring import score
from gpt.post_training.ppo.updates import update
from gpt.post_training.reward import Reward
from gpt.token_files.files import TokenFileWriter
from gpt.tokenizer.tokenizers import load_tokenizer
from gpt.training.objective import Objective
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

OURS, PEER = "triaxial", "trl"
TASKS = Path(__file__).resolve().parents[2] / "shared/data/other/instruct/self-instruct-seed-tasks.jsonl.gz"
SEED, LEARNING_RATE, BETA, LAYERS = 1234, 1e-6, 0.02, 30
REWARD_SEED, VALUE_SEED = 11, 12
CHAT = (  # SmolLM2-Instruct's template, for one turn
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
Prompts = list[list[int]]


def main() -> int:
    args = parse_arguments()
    if args.serve is not None:
        side_by_side.serve(lambda: our_block(json.loads(args.serve.read_text())))
        return 0
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a Python with TRL 0.21. Without it, only ours is timed")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of SmolLM2-135M-Instruct")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--episodes", type=int, default=16, help="of an iteration")
    parser.add_argument("--minibatch", type=int, default=8, help="episodes of an update, and of a forward pass")
    parser.add_argument("--prompt-tokens", type=int, default=96, help="longest prompt, with the chat format")
    parser.add_argument("--response-tokens", type=int, default=64, help="longest response")
    parser.add_argument("--given-lengths", action="store_true", help="end responses where the human answers end")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    args.given_lengths |= args.layers < LAYERS
    names, (prompts, lengths) = ("layers", "minibatch", "response_tokens", "threads", "precision"), read_tasks(args)
    spec = {name: getattr(args, name) for name in names} | {
        "model": str(args.model),
        "prompts": prompts,
        "lengths": lengths if args.given_lengths else {},
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "reward_seed": REWARD_SEED,
        "value_seed": VALUE_SEED,
        "autocast_sampler": args.precision == "bf16",
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    commands = {OURS: [sys.executable, __file__, "--serve", str(folder / "spec.json")]}
    if args.peer is not None:
        peer = Path(__file__).with_name("ppo_trl_peer.py")
        commands[PEER] = [str(args.peer), str(peer), str(folder / "spec.json")]
        root = str(Path(__file__).resolve().parents[1])
        os.environ["PYTHONPATH"] = f"{root}:{os.environ.get('PYTHONPATH', '')}"  # the peer imports side_by_side
    load = Path("/proc/loadavg").read_text().split()[0]
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=args.threads, report=report)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return {
        "benchmark": "ppo_trl",
        "settings": settings,
        **figures(answers, list(commands)),
        "machine": side_by_side.processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "load_before": float(load),
        "load_after": float(Path("/proc/loadavg").read_text().split()[0]),
        "versions": {"torch": version("torch")},
    }


def figures(answers: list[dict[str, dict[str, Any]]], names: list[str]) -> dict[str, Any]:
    """Ratios by episodes and by sampled tokens, in wall-clock and processor time, and the work that each side did."""
    result: dict[str, Any] = {}
    for unit in ("episodes", "tokens"):
        for span in ("train_s", "train_cpu_s"):
            spans = {name: [a[name][span] / a[name][unit] for a in answers] for name in names}
            key = f"{unit}_per_{'cpu_' if span == 'train_cpu_s' else ''}s"
            result[key] = {name: 1 / statistics.median(values) for name, values in spans.items()}
            result[f"{key}_ratio"] = side_by_side.speed_ratios(spans, OURS)
    work = ("episodes", "tokens", "updates", "train_s", "train_cpu_s")
    blocks = {name: {key: [a[name][key] for a in answers] for key in work} for name in names}
    return result | {
        "mean_length": {n: sum(b["tokens"]) / sum(b["episodes"]) for n, b in blocks.items()},
        "blocks": blocks,
        "phases_cpu_s": [a[OURS]["phases_cpu_s"] for a in answers],
        "peak_memory_bytes": {name: answers[-1][name]["peak_memory_bytes"] for name in names},
    }


def read_tasks(args: argparse.Namespace) -> tuple[list[Prompts], dict[str, int]]:
    """The prompts of each block, the warm-up's first: tasks of at most `--prompt-tokens`, in a random order.

    And the tokens of each task's human answer with an end token, at most `--response-tokens`.
    """
    tokenizer = import_extra("tokenizers", extra="hf").Tokenizer.from_file(str(args.model / "tokenizer.json"))
    with gzip.open(TASKS, "rt", encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file]
    texts = ["\n\n".join(filter(None, (task["instruction"], task["instances"][0]["input"]))) for task in tasks]
    encoded = [tokenizer.encode(CHAT.format(text)).ids for text in texts]
    answers = [tokenizer.encode(task["instances"][0]["output"]).ids for task in tasks]
    lengths = {
        length_key(ids): min(len(answer) + 1, args.response_tokens)
        for ids, answer in zip(encoded, answers, strict=True)
    }
    found = [ids for ids in encoded if len(ids) <= args.prompt_tokens]
    order = np.random.default_rng(SEED).permutation(len(found)).tolist()
    drawn = [found[order[i % len(found)]] for i in range((args.rounds + 1) * args.episodes)]
    return [drawn[i : i + args.episodes] for i in range(0, len(drawn), args.episodes)], lengths


@dataclass(frozen=True)
class GivenLengths(RolloutSource):
    """Rollouts whose responses have given lengths, unless they end earlier."""

    lengths: dict[str, int]

    def room(self, prompt: list[int]) -> int:
        return self.lengths[length_key(prompt)]


def our_block(spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The parts of `PPOLoop.iterate` without logging and checkpoints, which the peer does not do here either."""
    torch.set_num_threads(spec["threads"])
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    models, number = make_models(spec), 0
    quiet: dict[str, Any] = {"stop": lambda: False, "beat": lambda: None}

    def block() -> dict[str, Any]:
        nonlocal number
        setup, beat = make_setup(spec, spec["prompts"][number % len(spec["prompts"])]), quiet["beat"]
        source = RolloutSource(setup, models.policy)
        if spec["lengths"]:
            source = GivenLengths(setup, models.policy, spec["lengths"])
        marks = [(time.perf_counter(), time.process_time())]
        source.sample(1, SkippedData.stated(()), version=0, **quiet)
        marks.append((time.perf_counter(), time.process_time()))
        found = source.read(1).trimmed(setup.trim_to)
        experience = score(found, setup, models, beta=BETA, beat=beat)
        marks.append((time.perf_counter(), time.process_time()))
        rates = {"lr": LEARNING_RATE, "value_lr": LEARNING_RATE}
        updates = update(experience, setup, models, step=1, **rates, beat=beat)
        marks.append((time.perf_counter(), time.process_time()))
        number += 1
        assert updates.policy[0].loss.metrics["ratio_error"] == 0.0
        return {
            "train_s": marks[-1][0] - marks[0][0],
            "train_cpu_s": marks[-1][1] - marks[0][1],
            "phases_cpu_s": [b[1] - a[1] for a, b in pairwise(marks)],
            "episodes": len(found),
            "tokens": int(found.response_tokens.sum()),
            "updates": len(updates.policy),
        }

    block()
    return block


def make_models(spec: dict[str, Any]) -> PPOModels:
    kind = ppo_config(spec)
    policy = engine(spec, kind.build(z_loss=0.0), trains=True)
    reference = engine(spec, kind.build(z_loss=0.0))
    value = engine(spec, Value(clip=kind.value_clip), trains=True, head_seed=VALUE_SEED)
    reward = ScalarReward(engine(spec, Reward(), head_seed=REWARD_SEED))
    return PPOModels(policy, reference, value, ema=None, rewards=[reward], gold=[])


def ppo_config(spec: dict[str, Any]) -> PPOConfig:
    episodes = len(spec["prompts"][0])
    return PPOConfig(
        rewards=(RewardSource(run=Path("reward")),),
        max_response_tokens=spec["response_tokens"],
        beta=BETA,
        ema=0.0,
        minibatch_episodes=spec["minibatch"],
        rollout_rows=episodes,
        rollout_part=episodes,
    )


def engine(
    spec: dict[str, Any], objective: Objective, *, trains: bool = False, head_seed: int | None = None
) -> NativeEngine:
    """An engine with the first layers of the model, and its own head or a scalar one."""
    source = open_source(Path(spec["model"]))
    model: ModelConfig = replace(source.config, n_layers=spec["layers"])
    parallel, rows = ParallelConfig(precision=spec["precision"]), len(spec["prompts"][0])
    batch = BatchConfig(spec["minibatch"], rows * seq_len(spec))
    layout = resolve_layout(parallel, batch, model=model, seq_len=seq_len(spec), world_size=1)
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE) if trains else None
    settings = EngineSettings(model, parallel, layout, optimizer, spec["minibatch"], SEED)
    made = NativeEngine(settings, objective=objective, device=torch.device("cpu"))
    named = {name: getattr(tensor, "to_local", lambda tensor=tensor: tensor)() for name, tensor in made.parameters}
    weights = dict(source.read_weights([name for name in named if not name.startswith("head.")]))
    if head_seed is not None:
        weights["head.value.weight"] = scalar_head(model.d_model, seed=head_seed)
        weights["head.value.bias"] = torch.zeros(1)
    assert weights.keys() == named.keys(), weights.keys() ^ named.keys()
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(weights[name])
    return made


def seq_len(spec: dict[str, Any]) -> int:
    longest = max(len(prompt) for block in spec["prompts"] for prompt in block)
    return -(-(longest + spec["response_tokens"]) // 16) * 16


def make_setup(spec: dict[str, Any], prompts: Prompts) -> PPOSetup:
    """An iteration over these prompts: one pass over a corpus that has no others."""
    folder = Path(tempfile.mkdtemp())
    with TokenFileWriter(folder / "prompts", vocab_size=49152) as writer:
        for ids in prompts:
            writer.add_document(np.array(ids))
    corpus = CorpusConfig(str(folder / "prompts"))
    data = DataConfig(tokenizer="none", train=(corpus,), seq_len=seq_len(spec), sampling="document")
    return PPOSetup(
        config=ppo_config(spec),
        prompts=TrainingData(data, seed=SEED, vocab_size=49152),
        ptx=None,
        tokenizer=load_tokenizer(Path(spec["model"]) / "tokenizer.json"),
        end_ids=(END,),
        rollouts=folder / "rollouts",
        episodes=len(prompts),
        seq_len=seq_len(spec),
        seed=SEED,
        writes=True,
        sampled_by="benchmark",
        trim_to=16,
    )


if __name__ == "__main__":
    sys.exit(main())
