"""Compare our logits with those of `transformers` on the same weights, of the whole model or of an excerpt.

Only one of the two models is in memory at a time. A model too large for that is compared in its first layers and its
first tokens of vocabulary. Digests show that all bits are equal; logits show that both libraries interpret them in the
same way.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gpt.convert.hugging_face.names import table, to_hugging_face
from gpt.convert.hugging_face.peer import empty_peer_model, load_peer_model, peer_faults
from gpt.convert.weights import is_vocabulary, shapes
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT

MAX_RELATIVE_ERROR = 1e-3  # fp32 on both sides: one wrong tensor causes far more, rounding far less
WHOLE_BYTES = 1 << 30  # models up to this size in fp32 are compared whole
# An excerpt may take 1.5 times the largest tensor in 16 bits, plus this. Python, torch and transformers take about 1
# GiB more. One layer is always compared, unless it has more than 500 million parameters.
_SPARE_BYTES = 300 << 20
_ONE_LAYER_BYTES = 2 << 30
_EXCERPT_VOCABULARY = 256

Mode = Literal["auto", "whole", "none"]
Read = Callable[[Iterable[str]], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class LogitCheck:
    """Result of a comparison in fp32. The field names are part of triaxial_export.json."""

    max_relative_error: float  # max |a - b| / max |b|, where a are our logits and b those of transformers
    other_choices: int  # positions at which another token is the most likely
    places: int  # positions compared
    layers: int  # compared
    vocabulary: int  # tokens compared


def part_to_compare(config: ModelConfig, mode: Mode) -> ModelConfig | None:
    """Return the configuration of the part to compare: `config` itself, a smaller one, or None if nothing fits."""
    if mode == "none":
        return None
    if mode == "whole" or 4 * config.parameters <= WHOLE_BYTES:
        return config
    largest = max(math.prod(shape) for shape in shapes(config).values())
    budget = 3 * largest + _SPARE_BYTES
    part = dataclasses.replace(config, vocab_size=min(config.vocab_size, _EXCERPT_VOCABULARY))
    ends = part.parameters - part.n_layers * part.block_parameters
    layers = min((budget // 4 - ends) // config.block_parameters, config.n_layers)
    if layers < 1 and 4 * config.block_parameters > _ONE_LAYER_BYTES:
        return None
    return dataclasses.replace(part, n_layers=max(int(layers), 1))


def compare_logits(config: ModelConfig, part: ModelConfig, *, folder: Path, read: Read) -> LogitCheck:
    """Compare the logits of `part` on random tokens, up to 2 sequences of 256.

    `folder`: a Hugging Face folder. `read`: returns our weights of the given names. ConfigError: logits are not finite,
    or transformers cannot load the folder. RuntimeError: they differ by more than rounding: the converter has a bug.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(part.vocab_size, (2, min(part.n_ctx, 256)), generator=generator)
    with torch.inference_mode():
        a = _our_model(part, read)(tokens)
        model = _transformers_model(config, part, folder, read)
        with peer_faults(folder):
            b: Tensor = model(tokens).logits
    if a.shape != b.shape:
        raise RuntimeError(f"the logits of transformers have shape {tuple(b.shape)}, ours {tuple(a.shape)}")
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise ConfigError(
            f"{folder}: the model's logits are NaN or infinite, so its weights are too large to compute with. "
            "Use another copy of the model, or --logits none to convert it without this comparison."
        )
    largest = float(b.abs().max())  # 0 for a head of zeros
    error = float((a - b).abs().max()) / (largest or 1.0)
    if not error < MAX_RELATIVE_ERROR:
        raise RuntimeError(f"{folder}: the logits of transformers differ from ours by {error:.1e} of the largest")
    other = int((a.argmax(-1) != b.argmax(-1)).sum())
    return LogitCheck(error, other, tokens.numel(), part.n_layers, part.vocab_size)


def _our_model(part: ModelConfig, read: Read) -> GPT:
    tensors = _excerpt(part, read)
    with torch.device("meta"):
        model = GPT(part)
    model.to_empty(device="cpu")
    model.tie()  # to_empty allocates a shared weight twice
    parameters = dict(model.named_parameters())
    for name, tensor in tensors:
        parameters[name].zero_()
        parameters[name][: tensor.size(0)] = tensor
        del tensor
    return model.eval()


def _transformers_model(config: ModelConfig, part: ModelConfig, folder: Path, read: Read) -> Any:
    if part == config:
        return load_peer_model(folder)
    tensors = _excerpt(part, read)
    specials = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # may lie outside the excerpt
    model = empty_peer_model(folder, num_hidden_layers=part.n_layers, vocab_size=part.vocab_size, **specials)
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for name, tensor in to_hugging_face(part, tensors):
        parameters[name].copy_(tensor)
        missing.remove(name)
        del tensor
    assert not missing, missing
    return model.eval()


def _excerpt(part: ModelConfig, read: Read) -> Iterable[tuple[str, Tensor]]:
    """Return our weights of the part. The embedding and the head are cut before a model is built: they are largest."""
    names = [name for entry in table(part) for name in entry.names]
    ends = []
    for name, tensor in read([name for name in names if is_vocabulary(name)]):
        ends.append((name, tensor[: part.vocab_size].clone()))
        del tensor
    return itertools.chain(ends, read([name for name in names if not is_vocabulary(name)]))
