"""What a checkpoint costs training, and how near its writing comes to the disk: saves in the background and saves that
wait, beside torchtitan's own checkpoint manager and a plain writer, alternating in one run.

    python benchmarks/checkpoint_saving.py [--json FILE] [--rounds 5] [--directory DIR] [--no-peer]

All contenders train the same model by the same engine and save the same tensors to the same disk. The last line printed
is one JSON object. docs/results/reliability/checkpoint_saving.md says what is compared, and how fairly.
"""

import argparse
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import side_by_side
from checkpoint_savers import PEERS, PLAIN, TRAINERS, Setting, block_of

from gpt.errors import ConfigError, import_extra
from gpt.model.config import ModelConfig

OURS = "background"


def main() -> int:
    args = parse_arguments()
    return side_by_side.report_result(lambda: measure(args), args.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--n-layers", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=8, help="in a step, four in one forward pass")
    parser.add_argument("--steps", type=int, default=5, help="without a save, in each round, to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="save below it (default: a temporary folder)")
    parser.add_argument("--no-peer", action="store_true", help="leave torchtitan out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison; None as a contender's own process."""
    for name in ("sequences", "steps", "rounds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)} must be at least 1")
    setting = Setting(
        ModelConfig(
            vocab_size=args.vocab,
            n_ctx=args.context,
            n_layers=args.n_layers,
            d_model=args.d_model,
            n_heads=max(1, args.d_model // 64),
            tied=False,
        ),
        sequences=args.sequences,
        steps=args.steps,
    )
    if args.serve is not None:
        side_by_side.serve(lambda: block_of(args.serve, setting, args.directory / args.serve.replace(" ", "_")))
        return None
    if args.json is not None:
        side_by_side.check_writable(args.json)
    if not args.no_peer:
        import_extra("torchtitan", extra="benchmarks")
    with tempfile.TemporaryDirectory(prefix="checkpoint_saving_", dir=args.directory) as folder:
        return compare(setting, args, folder)


def compare(setting: Setting, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Run all contenders; the result as it is printed."""
    trainers = [name for name in TRAINERS if not (args.no_peer and name in PEERS)]
    words = [*sys.argv[1:], "--directory", folder]
    commands = {name: [sys.executable, __file__, *words, "--serve", name] for name in [*trainers, PLAIN]}
    report = lambda text: print(text, flush=True)  # noqa: E731
    answers = side_by_side.alternate(commands, rounds=args.rounds, threads=2, report=report)
    sizes = {name: answers[0][name]["bytes"] for name in commands}
    if max(sizes.values()) > 1.02 * min(sizes.values()):
        raise ConfigError(f"the contenders did not write the same amount: {sizes}")
    middle = lambda name, key: statistics.median(answer[name][key] for answer in answers)  # noqa: E731
    result = {
        "benchmark": "checkpoint_saving",
        "parameters": setting.model.parameters,
        "checkpoint_bytes": sizes[OURS],
        "rounds": args.rounds,
        "step_s": {name: middle(name, "step_s") for name in trainers},
        "stall_s": {name: middle(name, "stall_s") for name in trainers},
        "stall_cpu_s": {name: middle(name, "stall_cpu_s") for name in trainers},
        "stall_share_of_step": {name: middle(name, "stall_share") for name in trainers},
        "cost_share_of_step": {name: middle(name, "cost_share") for name in trainers},
        "times_the_stall": {name: times(answers, name, OURS, "stall_s") for name in trainers if name != OURS},
        "write_s": {name: middle(name, "write_s") for name in commands},
        "write_bytes_per_s": {name: sizes[name] / middle(name, "write_s") for name in commands},
        "share_of_plain_writer": {name: times(answers, PLAIN, name, "write_s") for name in trainers},
        "all": {name: [answer[name] for answer in answers] for name in commands},
        "machine": side_by_side.processor(),
        "versions": {name: version(name) for name in ("torch", *(() if args.no_peer else ("torchtitan",)))},
    }
    print_table(result)
    return result


def times(answers: list[dict[str, dict[str, Any]]], name: str, other: str, key: str) -> float:
    """How many times as long one contender takes as another: the median of the rounds' own ratios."""
    return statistics.median(answer[name][key] / answer[other][key] for answer in answers)


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{'':22}{'step s':>8}{'stall s':>9}{'stall/step':>12}{'cost/step':>11}{'alone s':>9}{'of plain':>10}")
    for name in result["step_s"]:
        columns = [(result["step_s"][name], "8.2f"), (result["stall_s"][name], "9.3f")]
        columns += [(result["stall_share_of_step"][name], "12.1%"), (result["cost_share_of_step"][name], "11.1%")]
        columns += [(result["write_s"][name], "9.2f"), (result["share_of_plain_writer"][name], "10.0%")]
        print(f"{name:22}" + "".join(f"{value:>{form}}" for value, form in columns))
    pace = result["write_bytes_per_s"][PLAIN] / 1e6
    print(f"{PLAIN:62}{result['write_s'][PLAIN]:>9.2f}  ({pace:,.0f} MB/s)\n")


if __name__ == "__main__":
    sys.exit(main())
