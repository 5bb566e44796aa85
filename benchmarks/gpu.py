"""Training tokens/s and MFU on one GPU beside torchtitan, nanoGPT and transformers, alternating in one run.

    python benchmarks/gpu.py [--size 125m|350m|1.3b] [--nanogpt FOLDER] [--json FILE] [--rounds N]

`--nanogpt` is a checkout: git clone https://github.com/karpathy/nanoGPT. Without it a step of the same kind, which is
part of this benchmark, takes its place ("plain"). torchtitan has no GPT-2, so its Llama 3 runs beside ours of the same
shape. A peer that is not here is named. If the GPU cannot hold all contenders at once, we alternate with one peer at a
time. The last line printed is one JSON object.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import side_by_side
import torch
from gpu_peers import Step, nanogpt_step, our_step, torchtitan_llama
from training_peers import nano_gpt, transformers_gpt2

from gpt.adapters.config import train_flops_per_token
from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.model.gpt3_sizes import shape_of_parameters
from gpt.training.optimizer import OptimizerConfig
from launch.training.hardware import peak_flops_per_s
from parallel.layout.config import BatchConfig, ParallelConfig

OURS, OUR_LLAMA, OURS_FP8 = "triaxial", "triaxial, Llama", "triaxial, fp8"
SEED, WARM_UP_STEPS = 1234, 3
POOL = 16  # batches that are made before the clock starts, and come again
LARGEST_LOSS_DIFFERENCE = 0.05  # nats; bf16 rounds each contender's sums apart
USABLE = 0.85  # of a GPU's memory: contexts of the processes and fragmentation take the rest


@dataclass(frozen=True)
class Size:
    parameters: float
    micro_batch: int  # sequences
    sequences: int  # of a step
    steps: int  # of a block, which takes a few seconds on an H100
    context: int = 1024
    vocab: int = 50_257


SIZES = {
    "125m": Size(125e6, 16, 64, 16),
    "350m": Size(350e6, 8, 64, 8),
    "1.3b": Size(1.3e9, 4, 64, 3),
    "tiny": Size(60e3, 2, 4, 1, context=64, vocab=512),  # to try the benchmark itself, on a CPU too
}


@dataclass(frozen=True)
class Setting:
    """What all contenders share. `llama`: of about as many parameters as `model`."""

    model: ModelConfig
    llama: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    steps: int
    device: torch.device

    def model_of(self, name: str) -> ModelConfig:
        return self.llama if name in (OUR_LLAMA, "torchtitan") else self.model


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="125m", choices=list(SIZES))
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a checkout of nanoGPT")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--micro-batch", type=int, help="sequences in one forward pass (default: by the size)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", metavar="NAME;...", help="only these, ours first (default: all that are here)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    setting = read_setting(args)
    if args.serve is not None:
        side_by_side.serve(lambda: timed_block(args.serve, setting, args.nanogpt))
        return None
    side_by_side.need_compiler()
    groups, absent = contenders(args, wide=takes_fp8(setting))
    for name, reason in absent.items():
        print(f"{name}: absent: {reason}", flush=True)
    results = [compare(names, setting, args) for names in split_to_fit(groups, setting)]
    return summary(results, absent, setting, args)


def read_setting(args: argparse.Namespace) -> Setting:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here. To try the benchmark: --device cpu --size tiny")
    if args.rounds < 1:
        raise ConfigError(f"--rounds {args.rounds} is invalid: must be at least 1")
    if args.json is not None and args.serve is None:
        side_by_side.check_writable(args.json)
    size = SIZES[args.size]
    model = shape_of_parameters(size.parameters, vocab_size=size.vocab, n_ctx=size.context)
    modern = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False}
    llama = replace(model, d_ff=llama_width(model.d_model), norm_eps=1e-5, rope_theta=10_000.0, **modern)
    micro = args.micro_batch or size.micro_batch
    if size.sequences % micro:
        raise ConfigError(f"--micro-batch {micro} is invalid: must divide the {size.sequences} sequences of a step")
    batch = BatchConfig(micro, size.sequences * size.context)
    return Setting(model, llama, batch, OptimizerConfig(learning_rate=3e-4), size.steps, torch.device(args.device))


def llama_width(d_model: int) -> int:
    """The width of torchtitan's MLP: two thirds of 4 d, rounded up to its multiple of 256."""
    return -(-int(2 * 4 * d_model / 3) // 256) * 256


def takes_fp8(setting: Setting) -> bool:
    """Return whether the model is wide enough for fp8 products to pay, and the GPU has them."""
    wide = setting.model.d_model >= ParallelConfig().fp8_min_width
    return wide and setting.device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


def contenders(args: argparse.Namespace, *, wide: bool) -> tuple[list[list[str]], dict[str, str]]:
    """Groups of contenders with one model, ours first; and the peers that are not here, with what to install."""
    gpt, llama, absent = [OURS], [OUR_LLAMA], {}
    if importlib.util.find_spec("transformers") is None:
        absent["transformers"] = "pip install transformers"
    else:
        gpt.append("transformers")
    if args.nanogpt is None:
        absent["nanoGPT"] = "git clone https://github.com/karpathy/nanoGPT, then --nanogpt FOLDER"
        gpt.append("plain")
    elif not (args.nanogpt / "model.py").is_file():
        raise ConfigError(f"--nanogpt {args.nanogpt} is invalid: there is no model.py in it")
    else:
        gpt.append("nanoGPT")
    if wide:
        gpt.append(OURS_FP8)
    if importlib.util.find_spec("torchtitan") is None:
        absent["torchtitan"] = "pip install 'torchtitan>=0.2.2,<0.3'"
    else:
        llama.append("torchtitan")
    groups = [names for names in (gpt, llama) if len(names) > 1]
    if args.contenders is not None:
        wanted = [name.strip() for name in args.contenders.split(";")]
        unknown = [name for name in wanted if name not in (*gpt, *llama)]
        if unknown:
            raise ConfigError(f"--contenders: '{unknown[0]}' is not here. Use some of {'; '.join((*gpt, *llama))}")
        groups = [names for group in groups if (names := [name for name in group if name in wanted])]
    return groups, absent


def split_to_fit(groups: list[list[str]], setting: Setting) -> list[list[str]]:
    """Contenders of one alternation: a group, or one of us beside each peer if the GPU cannot hold the group."""
    if setting.device.type != "cuda":
        return groups
    room = USABLE * torch.cuda.get_device_properties(0).total_memory
    found = []
    for group in groups:
        ours, *peers = group
        if sum(estimated_bytes(setting, name) for name in group) <= room or len(group) <= 2:
            found.append(group)
        else:
            found.extend([ours, peer] for peer in peers)
    return found


def estimated_bytes(setting: Setting, name: str) -> float:
    """Weights, gradients and moments in fp32; activations of a micro-batch without recomputation, and its logits."""
    model, tokens = setting.model_of(name), setting.batch.micro_batch_size * setting.model.n_ctx
    return 18 * model.parameters + tokens * (34 * model.n_layers * model.d_model + 12 * model.padded_vocab_size)


def compare(names: list[str], setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """One alternation of these contenders; the first is ours."""
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--serve", name] for name in names}
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=torch.get_num_threads(), report=report)
    return {
        "elapsed_s": {name: [answer[name]["elapsed_s"] for answer in answers] for name in names},
        "losses": {name: [loss for answer in answers for loss in answer[name]["losses"]] for name in names},
        "gpu_peak_bytes": {name: answers[-1][name]["gpu_peak_bytes"] for name in names},
    }


def summary(
    results: list[dict[str, Any]], absent: dict[str, str], setting: Setting, args: argparse.Namespace
) -> dict[str, Any]:
    """The result as it is printed. Contenders with our weights must have our losses, or a warning follows."""
    tokens = setting.batch.global_batch_tokens * setting.steps
    bf16_peak = peak_flops_per_s(setting.device, bf16=True, world_size=1, local_world_size=1)
    rows, apart = {}, 0.0
    for result in results:
        ours = next(iter(result["elapsed_s"]))
        ratios = side_by_side.speed_ratios(result["elapsed_s"], ours)
        for name, spans in result["elapsed_s"].items():
            speed = tokens / statistics.median(spans)
            flops = train_flops_per_token(setting.model_of(name), None, setting.model.n_ctx)
            rows[name if name not in rows else f"{name} (beside {list(result['elapsed_s'])[-1]})"] = {
                "tokens_per_s": speed,
                "mfu": speed * flops / bf16_peak if bf16_peak else None,
                "gpu_peak_bytes": result["gpu_peak_bytes"][name],
                "losses": [result["losses"][name][i] for i in (0, -1)],
                "elapsed_s": spans,
                "our_speed": ratios.get(name),
            }
            if name in ("transformers", "plain"):  # they start from our weights
                pairs = zip(result["losses"][ours], result["losses"][name], strict=True)
                apart = max(apart, *(abs(a - b) for a, b in pairs))
    found = {
        "benchmark": "gpu",
        "size": args.size,
        "parameters": {"GPT-3": setting.model.parameters, "Llama": setting.llama.parameters},
        "context": setting.model.n_ctx,
        "micro_batch_size": setting.batch.micro_batch_size,
        "global_batch_tokens": setting.batch.global_batch_tokens,
        "rounds": args.rounds,
        "steps_per_block": setting.steps,
        "contenders": rows,
        "absent": absent,
        "largest_loss_difference_nats": apart,
        "device": torch.cuda.get_device_name(0) if setting.device.type == "cuda" else side_by_side.processor(),
        "peak_flops_per_s": bf16_peak,
        "versions": {n: version(n) for n in ("torch", "transformers", "torchtitan") if importlib.util.find_spec(n)},
    }
    print_table(found)
    if not apart <= LARGEST_LOSS_DIFFERENCE:
        print(
            f"warning: the losses differ by up to {apart:.4f} nats at the same step, more than rounding explains "
            f"({LARGEST_LOSS_DIFFERENCE}): the contenders may not do the same work"
        )
    return found


def print_table(found: dict[str, Any]) -> None:
    print(
        f"\n{found['device']}, {found['size']}\n{'':34}{'tokens/s':>10}{'MFU':>8}{'ours/peer':>11}{'rounds':>18}"
        f"{'GPU MiB':>10}"
    )
    for name, row in found["contenders"].items():
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        ratio = row["our_speed"]
        middle = spread = ""
        if ratio is not None:
            middle, spread = f"{ratio['paired_median']:.3f}", f"{ratio['paired_min']:.3f}-{ratio['paired_max']:.3f}"
        memory = row["gpu_peak_bytes"] / 2**20
        print(f"{name:34}{row['tokens_per_s']:>10,.0f}{mfu:>8}{middle:>11}{spread:>18}{memory:>10,.0f}")
    print()


def timed_block(name: str, setting: Setting, nanogpt: Path | None) -> Callable[[], dict[str, Any]]:
    """Build a contender and warm it up; a function that takes the next block of steps."""
    torch.set_float32_matmul_precision("highest")
    step, done = build(name, setting, nanogpt), 0
    pool = [batch_of_step(setting, i) for i in range(POOL)]

    def block() -> dict[str, Any]:
        nonlocal done
        losses = [step(pool[(done + i) % POOL]) for i in range(setting.steps)]
        done += setting.steps
        peak = 0
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        return {"losses": losses, "gpu_peak_bytes": peak}

    for _ in range(WARM_UP_STEPS):
        step(pool[done % POOL])
        done += 1
    return block


def build(name: str, setting: Setting, nanogpt: Path | None) -> Step:
    model, optimizer, device = setting.model_of(name), setting.optimizer, setting.device
    size = setting.batch.micro_batch_size
    if name in (OURS, OUR_LLAMA, OURS_FP8):
        precision = "fp8" if name == OURS_FP8 else "bf16"
        return our_step(model, optimizer, setting.batch, device=device, seed=SEED, precision=precision)
    if name == "torchtitan":
        return torchtitan_llama(model, optimizer, setting.batch, device=device)
    if name == "nanoGPT":
        assert nanogpt is not None
        return nanogpt_step(nanogpt, model, optimizer, micro_batch_size=size, device=device)
    peer = {"transformers": transformers_gpt2, "plain": nano_gpt}[name]
    return peer(model, optimizer, micro_batch_size=size, seed=SEED, device=device)


def batch_of_step(setting: Setting, step: int) -> Batch:
    """Tokens by Zipf's law, the same for all contenders, as a data loader gives them: on the CPU."""
    generator = torch.Generator().manual_seed(step)
    weights = 1.0 / torch.arange(1, setting.model.vocab_size + 1)
    rows = setting.batch.global_batch_tokens // setting.model.n_ctx
    shape = (rows, setting.model.n_ctx + 1)
    tokens = torch.multinomial(weights, shape[0] * shape[1], replacement=True, generator=generator).view(shape)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


if __name__ == "__main__":
    sys.exit(main())
