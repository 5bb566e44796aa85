"""Processor time of each pass over one large input of `triaxial prepare`, and of the tokens of one long record.

    python -m benchmarks.long_inputs [--packed-mb 10] [--tokenizers FILE ...] [--record-mib 2] [--json FILE]

Passes: the digest that the task's key needs, the copy of a remote file, and the stage that extracts the text. The input
is a crawl of Python's help topics, repeated. Records: one text of each kind, with every tokenizer, scaled to 15 MiB:
the time grows in proportion to the text.
"""

import argparse
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from benchmarks.side_by_side import processor, report_result, rounded
from data_prep.execution.files import describe_file
from data_prep.extraction.extract import ExtractConfig, extract_stage, extract_task
from data_prep.inputs.config import InputConfig
from data_prep.readers.python_docs import CRAWL, CrawlTask
from data_prep.readers.remote_files import find_remote, local_copy, write_stub
from gpt.tokenizer.tokenizers import load_tokenizer, train_sentencepiece

RECORD_MIB = 15
MAX_COPY_BYTES = 1 << 34


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packed-mb", type=float, default=10.0, help="size of the packed web archive")
    parser.add_argument(
        "--tokenizers", nargs="*", type=Path, default=[], help="besides a sentencepiece model made here"
    )
    parser.add_argument("--record-mib", type=float, default=2.0, help="measured part of each long record")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    args = parser.parse_args()
    return report_result(lambda: measure(args), args.json)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both tables, in seconds of processor time."""
    folder = Path(tempfile.mkdtemp(prefix="long-inputs-"))
    try:
        found = {
            "processor": processor(),
            "passes_s": passes(folder, args.packed_mb),
            "records_of_15_mib_s": records(folder, args.tokenizers, args.record_mib),
        }
    finally:
        shutil.rmtree(folder)
    return rounded(found)


def seconds(action: Callable[[], object]) -> float:
    """The processor time of an action, with that of its children that have ended."""
    before = _used_s()
    action()
    return _used_s() - before


def _used_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# ---- passes over an input --------------------------------------------------------------------------------------------


def passes(folder: Path, packed_mb: float) -> dict[str, float]:
    """Processor time of each pass over a web archive of about so many packed megabytes."""
    part, archive = folder / "part.warc.gz", folder / "large.warc.gz"
    CRAWL.function(CrawlTask(0, 8), (), (part, folder / "part.trace"))
    data = part.read_bytes()
    archive.write_bytes(data * max(1, round(packed_mb * 1e6 / len(data))))
    config = ExtractConfig()
    stage, task = extract_stage(config), extract_task(InputConfig(paths=(str(archive),)), config)
    outputs = (folder / "documents.jsonl.zst", folder / "documents.trace")
    return {
        "packed_mb": archive.stat().st_size / 1e6,
        "digest": seconds(lambda: describe_file(archive)),
        "copy_of_a_remote_file": copy_s(archive),
        "extract": seconds(lambda: stage.function(task, (archive,), outputs)),
    }


def copy_s(archive: Path) -> float:
    """Processor time to copy the archive from a web server of this machine; that of the server is left out."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(archive.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split(" port ")[1].split()[0]
            (remote,) = find_remote(f"http://127.0.0.1:{port}/{archive.name}")
            stub = write_stub(remote, archive.parent)

            def copy() -> None:
                with local_copy(stub, archive.parent, max_bytes=MAX_COPY_BYTES):
                    pass

            return seconds(copy)
        finally:
            server.kill()


# ---- long records ----------------------------------------------------------------------------------------------------


def records(folder: Path, files: list[Path], mib: float) -> dict[str, dict[str, float]]:
    """Processor time for one record of 15 MiB of each kind, by tokenizer; `mib` of it are measured."""
    own = folder / "sentencepiece.model"
    train_sentencepiece((topics[name] for name in sorted(topics)), own, vocab_size=4000)
    found: dict[str, dict[str, float]] = {}
    for file in [own, *files]:
        tokenizer = load_tokenizer(file)
        found[file.name] = {}
        for kind, text in texts(round(mib * (1 << 20))).items():
            used_s = seconds(lambda text=text, tokenizer=tokenizer: tokenizer.encode_arrays([text]))  # type: ignore[misc]
            found[file.name][kind] = used_s * RECORD_MIB * (1 << 20) / len(text.encode())
    return found


def texts(n: int) -> dict[str, str]:
    """One text of about n bytes of each kind."""
    rng, words = random.Random(1), " ".join(topics.values()).split()
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {
        "prose": " ".join(rng.choices(words, k=n // 6)),
        "blanks": " " * n,
        "equal letters": "a" * n,
        "one word of random letters": "".join(rng.choices(letters, k=n)),
        "a tab before each letter": "\ta" * (n // 2),  # a token a byte
        "digits": "".join(rng.choices("0123456789", k=n)),
        "base64": "".join(rng.choices(f"{letters}{letters.upper()}0123456789+/", k=n)),
        "Chinese characters": "".join(map(chr, rng.choices(range(0x4E00, 0x9FA0), k=n // 3))),
    }


if __name__ == "__main__":
    sys.exit(main())
