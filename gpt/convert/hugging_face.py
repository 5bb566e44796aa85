"""Writes a Hugging Face folder that `transformers` loads as it is, and proves it; never runs remote code or pickles.

The folder appears under its name only after it has been read back: every tensor bit for bit, the logits against
`transformers`, the tokenizer against ours.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.config import ModelConfig
from gpt.convert.hugging_face_tokenizer import compare_tokenizers, write_tokenizer
from gpt.convert.names import family_of, shapes, table, their_shape, to_ours, to_theirs
from gpt.convert.safetensors_files import read_model, write_model
from gpt.errors import ConfigError, import_extra
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

MAX_RELATIVE_ERROR = 1e-3  # in fp32 on both sides; one wrong tensor is off by far more, rounding by far less


@dataclass(frozen=True)
class Verification:
    """What was found when the written folder was read back.

    `max_relative_logit_error` is max |a - b| / max |b|, a our logits and b those of `transformers`, both fp32.
    """

    max_relative_logit_error: float
    tensors: int  # equal bit for bit to the ones given
    texts: int  # tokenized alike and decoded alike


def export(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    output: Path,
    *,
    tokenizer: Tokenizer,
    tokenizer_file: Path,
    dtype: torch.dtype = torch.float32,
    about: dict[str, object] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Write our (name, tensor) pairs, in any order, as a Hugging Face folder; they are consumed one at a time.

    `progress` is called with the name of each tensor written; `about` and the verification are left in
    triaxial_export.json. ConfigError:
    a model no architecture expresses, an output that exists, tensors missing, unknown or of another shape, a tokenizer
    that cannot be expressed, or no `transformers`. Nothing is left at `output` unless all of it is right.
    """
    family_of(config)
    import_extra("transformers", extra="hf")
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output {output} exists already; name a folder that does not, or remove this one")
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    try:
        folder.mkdir(parents=True)
        write_configs(folder, config, end_of_document_id=tokenizer.end_of_document_id, dtype=dtype)
        write_tokenizer(tokenizer_file, folder, tokenizer=tokenizer, n_ctx=config.n_ctx)
        digests: dict[str, str] = {}
        ours = shapes(config)
        write_model(
            folder,
            to_theirs(config, _noted(tensors, config, dtype, digests, progress)),
            shapes={entry.theirs: their_shape(entry, ours) for entry in table(config)},
            dtype=dtype,
        )
        verification = verify(folder, config, tokenizer=tokenizer, digests=digests)
        _write_json(folder / "triaxial_export.json", {**(about or {}), **asdict(verification)})
        folder.rename(output)
    except OSError as error:
        raise ConfigError(f"--output {output} could not be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already where all went well
    return verification


def verify(folder: Path, config: ModelConfig, *, tokenizer: Tokenizer, digests: dict[str, str]) -> Verification:
    """Read a folder back through the table and through `transformers`, and compare.

    `digests`: SHA-256 of each of our tensors. RuntimeError when something differs: that is a defect of ours.
    """
    transformers = import_extra("transformers", extra="hf")
    model = GPT(config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in to_ours(config, read_model(folder)):
            if _digest(tensor) != digests[name]:
                raise RuntimeError(f"{folder}: the tensor '{name}' did not come back as it was written")
            parameters[name][: tensor.size(0)] = tensor  # vocabulary padding, which nothing reads, stays as it is
    transformers.utils.logging.disable_progress_bar()  # ours is on the screen already
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    error = logit_error(model, theirs, config)
    if not error < MAX_RELATIVE_ERROR:
        raise RuntimeError(f"{folder}: the logits of transformers differ from ours by {error:.1e} of the largest")
    texts = compare_tokenizers(folder, tokenizer)
    return Verification(max_relative_logit_error=error, tensors=len(digests), texts=texts)


@torch.inference_mode()
def logit_error(ours: GPT, theirs: Any, config: ModelConfig) -> float:
    """max |a - b| / max |b| over the logits of both models on random tokens, two sequences up to 256 long."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (2, min(config.n_ctx, 256)), generator=generator)
    a: Tensor = ours.eval()(tokens)
    b: Tensor = theirs.eval()(tokens).logits
    if a.shape != b.shape:
        raise RuntimeError(f"the logits of transformers have shape {tuple(b.shape)}, ours {tuple(a.shape)}")
    return float((a - b).abs().max() / b.abs().max())


def write_configs(folder: Path, config: ModelConfig, *, end_of_document_id: int, dtype: torch.dtype) -> None:
    """config.json and generation_config.json. A document's end also stands where a text begins."""
    specials = {"bos_token_id": end_of_document_id, "eos_token_id": end_of_document_id}
    settings = _gpt2_settings(config) if family_of(config) == "gpt2" else _llama_settings(config)
    common = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }
    _write_json(folder / "config.json", {**settings, **common, **specials})
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **specials})


def _gpt2_settings(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.ff_width,
        "activation_function": "gelu_new",  # GELU in its tanh form
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _llama_settings(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.d_model,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "max_position_embeddings": config.n_ctx,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # where transformers 4 looks
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # where 5 does
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
    }


def _noted(
    tensors: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    dtype: torch.dtype,
    digests: dict[str, str],
    progress: Callable[[str], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they pass, the digest of each left in `digests`."""
    rows = {name: shape[0] for name, shape in shapes(config).items()}
    for name, tensor in tensors:
        digests[name] = _digest(tensor[: rows.get(name)].to(dtype))
        yield name, tensor
        if progress is not None:
            progress(name)


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
