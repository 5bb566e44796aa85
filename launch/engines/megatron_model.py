"""The model, the data and the run of a recipe from the flags of Megatron-LM's pretrain_gpt.py.

A flag that is left out has the default of Megatron-LM's megatron/training/arguments.py.
"""

from typing import Any

from gpt.errors import ConfigError
from launch.engines.megatron_flags import Flags, as_number
from launch.engines.recipe_draft import CORPUS, TOKENIZER, RecipeDraft

VOCABULARY = {"GPT2BPETokenizer": 50257}  # tokenizers whose size is known; Megatron-LM reads the others' from a file


def run_section(flags: Flags, draft: RecipeDraft) -> None:
    save, load = flags.text("--save"), flags.text("--load")
    draft.set("run.directory", save or "runs/from_megatron", "--save" if save else "")
    draft.set("run.seed", flags.number("--seed"), "--seed")
    minutes = flags.number("--distributed-timeout-minutes")
    draft.set("run.collective_timeout_s", minutes and 60 * minutes, "--distributed-timeout-minutes")
    if load is not None and load != save:
        draft.lacks(f"--load {load}", "convert the checkpoint with `triaxial convert`, then name it in run.start_from")
    draft.set("metrics.log_every_steps", flags.number("--log-interval", 100), "--log-interval")
    draft.set("metrics.wandb_project", flags.text("--wandb-project"), "--wandb-project")
    draft.set("metrics.wandb_name", flags.text("--wandb-exp-name"), "--wandb-exp-name")


def model_section(flags: Flags, draft: RecipeDraft) -> None:
    for flag, key in (
        ("--num-layers", "n_layers"),
        ("--hidden-size", "d_model"),
        ("--num-attention-heads", "n_heads"),
        ("--max-position-embeddings", "n_ctx"),
    ):
        value = flags.number(flag)
        if value is None:
            raise ConfigError(f"{flag} is missing: a recipe needs model.{key}. Add {flag} N")
        draft.set(f"model.{key}", value, flag)
    width, heads = draft.get("model.d_model"), draft.get("model.n_heads")
    _vocabulary(flags, draft)
    swiglu, channels = flags.switch("--swiglu"), flags.number("--kv-channels")
    if channels is not None and channels * heads != width:
        draft.lacks(f"--kv-channels {channels}", "a head has hidden size / heads channels, so the model would differ")
    groups = flags.number("--num-query-groups")
    if flags.switch("--group-query-attention"):
        draft.set("model.n_kv_heads", 1 if groups is None else groups, "--num-query-groups")
    elif groups is not None:
        raise ConfigError("--num-query-groups without --group-query-attention is invalid: Megatron ignores it. Add it")
    inner = flags.number("--ffn-hidden-size")
    if inner is None and swiglu:
        inner = int(4 * width * 2 / 3 / 64) * 64  # Megatron-LM's default with --swiglu
    draft.set("model.d_ff", inner, "--ffn-hidden-size" if "--ffn-hidden-size" in flags else "Megatron-LM's default")
    draft.set("model.activation", "swiglu" if swiglu else None, "--swiglu")
    _positions(flags, draft)
    norm = flags.text("--normalization", "LayerNorm")
    draft.set("model.norm", "rmsnorm" if norm == "RMSNorm" else None, "--normalization")
    draft.set("model.norm_eps", flags.number("--norm-epsilon"), "--norm-epsilon")
    draft.set("model.bias", False if flags.switch("--disable-bias-linear") else None, "--disable-bias-linear")
    untied = flags.switch("--untie-embeddings-and-output-weights")
    draft.set("model.tied", False if untied else None, "--untie-embeddings-and-output-weights")
    draft.set("model.init_std", flags.number("--init-method-std"), "--init-method-std")
    for flag in ("--hidden-dropout", "--attention-dropout"):
        share = flags.number(flag, 0.1)
        if share:
            draft.lacks(f"{flag} {share}", "no dropout" if flag in flags else "no dropout, which is Megatron's default")


def _positions(flags: Flags, draft: RecipeDraft) -> None:
    kind, rotary = flags.text("--position-embedding-type"), flags.switch("--use-rotary-position-embeddings")
    if rotary and kind not in (None, "rope"):
        raise ConfigError(
            f"--use-rotary-position-embeddings and --position-embedding-type {kind} contradict each other"
        )
    scaled, factor = flags.switch("--use-rope-scaling"), flags.number("--rope-scaling-factor", 8.0)
    base = flags.number("--rotary-base")
    if rotary or kind == "rope":
        draft.set("model.positions", "rope", "--position-embedding-type")
        draft.set("model.rope_theta", base and float(base), "--rotary-base")
        draft.set("model.rope_scaling", {"factor": float(factor)} if scaled else None, "--use-rope-scaling")
    elif kind not in (None, "learned_absolute"):
        draft.lacks(f"--position-embedding-type {kind}", "positions are learned or rotary, so the model would differ")


def _vocabulary(flags: Flags, draft: RecipeDraft) -> None:
    kind = flags.text("--tokenizer-type", "")
    size = flags.number("--vocab-size", VOCABULARY.get(kind or ""))
    if size is None:
        hint = f"the size of the {kind or 'tokenizer'}; Megatron-LM reads it from the tokenizer"
        draft.leave("model.vocab_size", 0, hint, example=50257)
    else:
        draft.set("model.vocab_size", size, "--vocab-size" if "--vocab-size" in flags else f"--tokenizer-type {kind}")
    multiple = flags.number("--make-vocab-size-divisible-by", 128) * flags.number("--tensor-model-parallel-size", 1)
    if multiple != 128:
        draft.set("model.vocab_multiple", multiple, "--make-vocab-size-divisible-by x tensor ranks, as in Megatron-LM")
    path, files = flags.text("--tokenizer-model"), [flags.text(flag) for flag in ("--vocab-file", "--merge-file")]
    if path:
        draft.set("data.tokenizer", path, "--tokenizer-model")
    else:
        hint = "a folder with vocab.json and merges.txt" if any(files) else "the tokenizer's file or folder"
        draft.leave("data.tokenizer", TOKENIZER, hint, example=TOKENIZER)


def data_section(flags: Flags, draft: RecipeDraft) -> None:
    length = flags.number("--seq-length")
    if length is None:
        raise ConfigError("--seq-length is missing: a recipe needs data.seq_len. Add --seq-length N")
    flags.exclude("--data-path", "--train-data-path", "--mock-data")
    flags.exclude("--split", "--train-data-path")
    draft.set("data.seq_len", length, "--seq-length")
    name = "--train-data-path" if "--train-data-path" in flags else "--data-path"
    if corpora := _blend(name, flags.words(name)):
        draft.set("data.train", corpora, name)
    else:
        draft.leave("data.train", [{"path": CORPUS}], "token files without .bin", example=[{"path": CORPUS}])
    if validation := _blend("--valid-data-path", flags.words("--valid-data-path")):
        draft.set("data.validation", validation, "--valid-data-path")
    if split := flags.text("--split"):
        draft.lacks(f"--split {split}", "all of data.train is trained on. Name other token files in data.validation")
    resets = [flags.switch(flag) for flag in ("--reset-attention-mask", "--reset-position-ids")]
    draft.set("data.document_mask", True if all(resets) else None, "--reset-attention-mask --reset-position-ids")
    if any(resets) and not all(resets):
        draft.lacks("--reset-attention-mask or --reset-position-ids alone", "data.document_mask does both")


def _blend(name: str, words: list[str]) -> list[dict[str, Any]]:
    """Corpora from PATH, from PATH PATH ..., or from WEIGHT PATH WEIGHT PATH ..."""
    if len(words) < 2 or not _is_number(words[0]):
        return [{"path": word} for word in words]
    if len(words) % 2:
        raise ConfigError(f"{name} {' '.join(words)} is invalid: each weight needs a path. Use WEIGHT PATH WEIGHT PATH")
    pairs = zip(words[::2], words[1::2], strict=True)
    return [{"path": path, "weight": float(as_number(name, weight))} for weight, path in pairs]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
