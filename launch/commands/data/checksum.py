"""`triaxial prepare checksum`: makes the checksums that training compares token files with, or compares all of them."""

import argparse
from pathlib import Path

from rich.console import Console

from gpt.token_files.files import compare_sums, make_sums, shard_prefixes

_SHOWN = 10  # damaged blocks of a pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, help="token files without .bin or .idx, such as data/demo/train, or a set")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="write them anew where there are some: what lies there now is right",
    )


def run(args: argparse.Namespace) -> int:
    """Write PREFIX.sums where there is none, and compare where there is one; status 1 where that shows damage."""
    console = Console(emoji=False, highlight=False, markup=False, soft_wrap=True)
    status = 0
    for prefix in shard_prefixes(args.prefix):
        damaged = None if args.replace else compare_sums(prefix)
        if damaged is None:
            make_sums(prefix)
            console.print(f"wrote {prefix}.sums")
        elif damaged:
            for line in damaged[:_SHOWN]:
                console.print(line)
            faults = "1 fault" if len(damaged) == 1 else f"{len(damaged):,} faults"
            console.print(f"{prefix}: {faults}; copy the file again (--replace declares it right)")
            status = 1
        else:
            console.print(f"{prefix}: whole")
    return status
