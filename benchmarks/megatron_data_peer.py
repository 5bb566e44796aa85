"""Megatron-core's GPTDataset and BlendedDataset on our token files, set up as Megatron-LM's pretraining script does.

Needs the extra `megatron` (measured with 0.16.1; torch and numpy are all that it imports).
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data_loading_files as files
import numpy as np
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.data.config import CorpusConfig
from gpt.errors import import_extra

SURPLUS = 0.005  # megatron-core's default for `mid_level_dataset_surplus`


def load_megatron() -> None:
    """Import what the measurements use, in advance of them; ConfigError without megatron-core."""
    warnings.filterwarnings("ignore")
    for module in ("blended_dataset", "gpt_dataset", "helpers"):
        import_extra(f"megatron.core.datasets.{module}", extra="megatron")
    if not dist.is_initialized():  # BlendedDataset asks for its rank
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)


def configuration(cache: Path | None, *, mmap: bool = True) -> Any:
    """As Megatron-LM's pretrain_gpt.py makes it, without the (seq_len, seq_len) mask that its kernels do not read."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    return GPTDatasetConfig(
        random_seed=files.SEED,
        sequence_length=files.SEQ_LEN,
        split="1,0,0",
        path_to_cache=None if cache is None else str(cache),
        mmap_bin_files=mmap,
        tokenizer=NullTokenizer(files.VOCAB_SIZE - 1),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )


def one_corpus(corpus: CorpusConfig, *, n_samples: int, config: Any) -> Any:
    """A GPTDataset over a whole token file; builds its indices, or maps those in the cache."""
    from megatron.core.datasets.gpt_dataset import GPTDataset
    from megatron.core.datasets.utils import Split

    low_level = GPTDataset.build_low_level_dataset(corpus.path, config)
    documents = np.arange(GPTDataset.numel_low_level_dataset(low_level), dtype=np.int32)
    return GPTDataset(low_level, corpus.path, documents, n_samples, Split.train, config)


def blend(corpora: Sequence[CorpusConfig], *, n_samples: int, config: Any) -> Any:
    """A BlendedDataset over the corpora, each asked for as many samples as Megatron's own builder asks of it."""
    from megatron.core.datasets.blended_dataset import BlendedDataset

    total = sum(corpus.weight for corpus in corpora)
    wanted = [math.ceil(math.ceil(n_samples * c.weight / total) * (1 + SURPLUS)) for c in corpora]
    parts = [one_corpus(c, n_samples=n, config=config) for c, n in zip(corpora, wanted, strict=True)]
    return BlendedDataset(parts, [corpus.weight for corpus in corpora], n_samples, config)


def spans_read(dataset: Any, n_samples: int, document_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in the file the first samples' inputs lie, (spans,) first tokens and one past the last ones, when all
    documents are `document_tokens` long."""
    starts, stops = [], []
    samples = np.asarray(dataset.shuffle_index[:n_samples], dtype=np.int64)
    borders = zip(dataset.sample_index[samples].tolist(), dataset.sample_index[samples + 1].tolist(), strict=True)
    for (first, offset), (last, end) in borders:
        for place in range(first, last + 1):
            begin = int(dataset.document_index[place]) * document_tokens
            starts.append(begin + (offset if place == first else 0))
            stops.append(begin + (end if place == last else document_tokens))
    return np.array(starts), np.array(stops)
