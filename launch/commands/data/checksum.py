"""`triaxial prepare checksum`: write the checksums with which training verifies token files, or compare all of them."""

import argparse
from pathlib import Path

from gpt.token_files.files import compare_sums, make_sums, shard_prefixes
from launch.processes.terminal import SafeConsole, work_progress

_MAX_SHOWN = 10  # damaged blocks per pair of files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, help="token files without .bin or .idx, such as data/demo/train, or a set")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="overwrite existing checksums: declares that the files are correct as they are now",
    )


def run(args: argparse.Namespace) -> int:
    """Write PREFIX.sums if it does not exist, else compare; returns status 1 if that shows damage."""
    console = SafeConsole(emoji=False, highlight=False, markup=False, soft_wrap=True)
    status = 0
    prefixes = shard_prefixes(args.prefix)
    sizes = [path.stat().st_size for prefix in prefixes for path in _files(prefix) if path.is_file()]
    with work_progress() as progress:
        progress.start(f"reading {args.prefix}", total=sum(sizes))
        for prefix in prefixes:
            damaged = None if args.replace else compare_sums(prefix, progress.advance)
            if damaged is None:
                make_sums(prefix, progress.advance)
                console.print(f"wrote {prefix}.sums")
            elif damaged:
                for line in damaged[:_MAX_SHOWN]:
                    console.print(line)
                faults = "1 fault" if len(damaged) == 1 else f"{len(damaged):,} faults"
                console.print(f"{prefix}: {faults}. Copy the file again (or declare it correct with --replace)")
                status = 1
            else:
                console.print(f"{prefix}: whole")
    return status


def _files(prefix: Path) -> list[Path]:
    return [Path(f"{prefix}{suffix}") for suffix in (".bin", ".idx")]
