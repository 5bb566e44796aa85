"""What the child processes of data_loading.py do and measure, ours and the peer's."""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import data_loading_files as files
import megatron_data_peer as megatron
import numpy as np
import torch
from torch.utils.data import default_collate

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData

COLD_SAMPLES = 256
READ_SAMPLES = 512
BATCHES_PER_BLOCK = 256
EPOCH_DOCUMENTS = 20_000


def open_ours(corpora: Sequence[CorpusConfig]) -> TrainingData:
    return TrainingData(
        DataConfig(tokenizer="none", train=tuple(corpora), seq_len=files.SEQ_LEN),
        seed=files.SEED,
        vocab_size=files.VOCAB_SIZE,
    )


def our_batch(data: TrainingData, first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As gpt/training/loop.py makes inputs and targets of them."""
    tokens = torch.from_numpy(data.read(np.arange(first, first + n)).tokens)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def their_batch(dataset: Any, first: int, n: int) -> dict[str, torch.Tensor]:
    """As the data loader of Megatron-LM collates them."""
    collated: dict[str, torch.Tensor] = default_collate([dataset[i] for i in range(first, first + n)])
    return collated


def open_mixture(args: argparse.Namespace) -> dict[str, float]:
    """From a mixture that was never opened in this process to its first batch."""
    corpora = files.gpt3_mixture(args.folder / "mixtures", args.tokens, document_tokens=args.document_tokens)
    if args.who == "ours":
        return measured(lambda: our_batch(open_ours(corpora), 0, args.batch))
    megatron.load_megatron()
    cache = args.folder / "cache" / f"blend-{args.tokens}"
    if args.who == "megatron":
        shutil.rmtree(cache, ignore_errors=True)
    config = megatron.configuration(cache)
    n_samples = files.run_samples(args.tokens)
    return measured(lambda: their_batch(megatron.blend(corpora, n_samples=n_samples, config=config), 0, args.batch))


def read_described(args: argparse.Namespace) -> dict[str, float]:
    """What each further random sample of an open mixture costs. The peer reads by its IndexedDataset, as an index of
    so many samples would take 78 GB."""
    corpora = files.gpt3_mixture(args.folder / "mixtures", args.tokens, document_tokens=args.document_tokens)
    data = open_ours(corpora)
    if args.who == "triaxial":
        read: Callable[[int], Any] = lambda i: our_batch(data, i, 8)  # noqa: E731
    else:
        megatron.load_megatron()
        from megatron.core.datasets.gpt_dataset import GPTDataset

        config = megatron.configuration(None)
        stored = [GPTDataset.build_low_level_dataset(corpus.path, config) for corpus in data.corpora]

        def read(i: int) -> Any:
            corpus, _, window = data.order.lookup(np.arange(i, i + 8))
            document, offset = np.divmod(window * files.SEQ_LEN, args.document_tokens)
            places = zip(corpus.tolist(), document.tolist(), offset.tolist(), strict=True)
            return [np.array(stored[k].get(d, offset=o, length=files.SEQ_LEN)) for k, d, o in places]

    read(0)
    for corpus in corpora:
        evict(Path(f"{corpus.path}.bin"))

    def work() -> None:
        for i in range(8, 8 + READ_SAMPLES, 8):
            read(i)

    answer = measured(work)
    return {f"{key}_a_sample": value / READ_SAMPLES for key, value in answer.items()} | {"seconds": answer["seconds"]}


def evict(path: Path) -> None:
    """Have the system forget what it holds of a file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_cold(args: argparse.Namespace) -> dict[str, float]:
    """The first samples of a file that the system's cache does not hold."""
    corpus = CorpusConfig(path=str(args.prefix))
    n_samples = Path(f"{args.prefix}.bin").stat().st_size // 2 // files.SEQ_LEN - 1
    if args.who.startswith("triaxial"):
        data = open_ours([corpus if args.who == "triaxial" else files.without_sums(corpus)])
        read: Callable[[int], Any] = lambda i: our_batch(data, i, args.batch)  # noqa: E731
    else:
        megatron.load_megatron()
        config = megatron.configuration(args.folder / "cache" / "full", mmap=args.who == "megatron")
        dataset = megatron.one_corpus(corpus, n_samples=n_samples, config=config)
        for index in (dataset.document_index, dataset.sample_index, dataset.shuffle_index):
            np.array(index)  # its indices may be in memory
        read = lambda i: their_batch(dataset, i, args.batch)  # noqa: E731
    evict(Path(f"{args.prefix}.bin"))
    before = _io_bytes()
    answer = measured(lambda: [read(i) for i in range(0, COLD_SAMPLES, args.batch)])
    used = COLD_SAMPLES * (files.SEQ_LEN + 1) * 2
    return {
        "seconds": answer["seconds"],
        "ms_a_batch": answer["seconds"] * 1e3 * args.batch / COLD_SAMPLES,
        "disk_bytes_a_byte_used": (_io_bytes() - before) / used,
    }


def batches(who: str, prefix: Path, folder: Path, n: int) -> Callable[[], dict[str, Any]]:
    """A function that reads the next block of batches from a file that is in memory."""
    torch.set_num_threads(1)
    corpus = CorpusConfig(path=str(prefix))
    n_samples = Path(f"{prefix}.bin").stat().st_size // 2 // files.SEQ_LEN - 1
    if who.startswith("triaxial"):
        data = open_ours([corpus if who == "triaxial" else files.without_sums(corpus)])
        read: Callable[[int], Any] = lambda i: our_batch(data, i, n)  # noqa: E731
    else:
        megatron.load_megatron()
        dataset = megatron.one_corpus(
            corpus, n_samples=n_samples, config=megatron.configuration(folder / "cache" / "full")
        )
        read = lambda i: their_batch(dataset, i, n)  # noqa: E731
        if who == "megatron_tokens_only":  # what is under __getitem__: no tensors, no targets, no masks, no batch
            read = lambda i: [dataset._query_document_sample_shuffle_indices(j) for j in range(i, i + n)]  # noqa: E731
    with open(f"{prefix}.bin", "rb") as file:
        while file.read(1 << 24):
            pass
    done = 0

    def block() -> dict[str, Any]:
        nonlocal done
        cpu_started_at = time.process_time()
        for _ in range(BATCHES_PER_BLOCK):
            read(done * n % (n_samples - n))
            done += 1
        return {"batches": BATCHES_PER_BLOCK, "cpu_s": time.process_time() - cpu_started_at}

    block()
    return block


def one_epoch(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What share of the documents no token was read of when a third of a run of three epochs is over."""
    (args.folder / "epoch").mkdir(exist_ok=True)
    prefix, length = args.folder / "epoch" / "short", 750
    files.write_sparse(prefix, n_documents=EPOCH_DOCUMENTS, document_tokens=length)
    corpus = CorpusConfig(path=str(prefix))
    data = open_ours([corpus])
    n_samples = data.n_samples[0]
    first = data.order.lookup(np.arange(n_samples))[2] * files.SEQ_LEN
    found = {"triaxial": coverage(first, first + files.SEQ_LEN, length)}
    if args.who == "megatron":
        megatron.load_megatron()
        config = megatron.configuration(args.folder / "cache" / "epoch")
        dataset = megatron.one_corpus(corpus, n_samples=3 * n_samples, config=config)
        found["megatron"] = coverage(*megatron.spans_read(dataset, n_samples, length), length)
    return found


def coverage(starts: np.ndarray, stops: np.ndarray, document_tokens: int) -> dict[str, float]:
    """Shares of documents of which no token, and of tokens that are read never, and more than once, by the spans."""
    times = np.zeros(EPOCH_DOCUMENTS * document_tokens + 1, dtype=np.int32)
    np.add.at(times, starts, 1)
    np.add.at(times, stops, -1)
    times = np.cumsum(times[:-1])
    documents = times.reshape(EPOCH_DOCUMENTS, document_tokens)
    return {
        "unread_documents": float((documents.max(axis=1) == 0).mean()),
        "unread_tokens": float((times == 0).mean()),
        "repeated_tokens": float((times > 1).mean()),
    }


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a piece of work by the clock and of the processor, and what it added to this process's memory."""
    before, tables = _status("VmRSS"), _status("VmPTE")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started_at, time.process_time() - cpu_started_at
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": _status("VmHWM") - before,
        "page_table_bytes": _status("VmPTE") - tables,
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _io_bytes() -> int:
    """What this process has had fetched from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "open": open_mixture,
    "read": read_described,
    "cold": read_cold,
    "epoch": one_epoch,
}
