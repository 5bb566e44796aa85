"""Turn a DeepSpeed configuration into a recipe. It says nothing of the model, the data or the length of training.

https://www.deepspeed.ai/docs/config-json/ describes its keys.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, did_you_mean
from gpt.files.json_files import read_json_object
from launch.engines.recipe_draft import CORPUS, TOKENIZER, RecipeDraft

TITLE = "Made by `triaxial recipe from-deepspeed` from {path}."
MODEL = {"vocab_size": 50257, "n_ctx": 1024, "n_layers": 12, "d_model": 768, "n_heads": 12}  # valid examples
UNNEEDED = frozenset(
    (
        *("aio", "amp_master_weights", "autotuning", "bfloat16", "comms_logger", "csv_monitor", "data_types"),
        *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "dump_state", "flops_profiler"),
        *("memory_breakdown", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
        *("checkpoint", "disable_allgather", "compile", "managed_gradient_accumulation", "gradient_allreduce_op"),
        *("gradient_accumulation_dtype", "fp16_master_weights_and_gradients", "use_data_before_expert_parallelism"),
    )
)
LACKING = {
    "amp": "bf16 needs no loss scale: the precision is bf16 or fp32",
    "compression_training": "weights are not quantised or pruned",
    "curriculum_learning": "data.seq_len is constant; batch.ramp_tokens lets the batch grow",
    "data_efficiency": "every sample is used as it is",
    "elasticity": "a run resumes on any layout; batch.global_batch_tokens stays",
    "hybrid_engine": "training and generation share one engine already",
    "pipeline": "parallel.pipeline and parallel.schedule arrange pipeline stages",
    "sparse_attention": "attention is dense",
    "sparse_gradients": "gradients are dense",
    "tensor_parallel": "parallel.tensor shards all matrices",
    "tensorboard": "W&B and metrics.jsonl instead of TensorBoard",
}
SHAPES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def recipe_from_deepspeed(path: Path, overrides: Sequence[str]) -> str:
    """The recipe's text. ConfigError: the file is no JSON object, or its keys contradict each other."""
    config, draft = read_json_object(path), RecipeDraft(TITLE.format(path=path))
    draft.override(overrides)
    used = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer"}
    used |= {"scheduler", "gradient_clipping", "bf16", "fp16", "zero_optimization", "steps_per_print", "wandb", "seed"}
    used |= {"activation_checkpointing"}
    draft.hint_engine("deepspeed", "DeepSpeed")
    for section in (_run, _model, _batch, _precision, _parallel, _optimizer, _schedule):
        section(config, draft)
    for key, value in config.items():
        if key in used or _is_off(value):
            continue
        if key in UNNEEDED:
            draft.unneeded.append(key)
        elif key in LACKING:
            draft.lacks(key, LACKING[key])
        else:
            draft.unknown.append(f"{key} {did_you_mean(key, [*used, *UNNEEDED, *LACKING])}".rstrip())
    return draft.text()


def _run(config: dict[str, Any], draft: RecipeDraft) -> None:
    draft.set("run.directory", "runs/from_deepspeed")
    draft.set("run.seed", _number(config, "seed"), "seed")
    draft.set("metrics.log_every_steps", _number(config, "steps_per_print"), "steps_per_print")
    wandb = _table(config, "wandb")
    if wandb.get("enabled"):
        draft.set("metrics.wandb", "online", "wandb.enabled")
        for theirs, ours in (("project", "wandb_project"), ("team", "wandb_entity"), ("job_name", "wandb_name")):
            draft.set(f"metrics.{ours}", wandb.get(theirs), f"wandb.{theirs}")


def _model(config: dict[str, Any], draft: RecipeDraft) -> None:
    for key, example in MODEL.items():
        draft.leave(f"model.{key}", 0, "the model is in your program, such as its config.json", example=example)
    draft.leave("data.tokenizer", TOKENIZER, "the tokenizer's file or folder", example=TOKENIZER)
    draft.leave("data.train", [{"path": CORPUS}], "token files without .bin", example=[{"path": CORPUS}])
    draft.leave("data.seq_len", 0, "tokens of a sequence", example=1024)


def _batch(config: dict[str, Any], draft: RecipeDraft) -> None:
    micro, whole, accumulated = (
        _number(config, key)
        for key in ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps")
    )
    accumulated = accumulated or 1
    if micro and whole and whole % (micro * accumulated):
        raise ConfigError(
            f"train_batch_size = {whole} is invalid: train_micro_batch_size_per_gpu = {micro} x "
            f"gradient_accumulation_steps = {accumulated} must divide it"
        )
    if micro:
        draft.set("batch.micro_batch_size", micro, "train_micro_batch_size_per_gpu")
    else:
        draft.leave("batch.micro_batch_size", 0, "sequences of a rank in one forward pass", example=1)
    length = draft.get("data.seq_len")
    if whole and length:
        draft.set("batch.global_batch_tokens", whole * length, f"train_batch_size {whole} x data.seq_len {length}")
    else:
        sequences = whole or f"{micro or 'micro-batch'} x {accumulated} x the number of data ranks"
        draft.leave("batch.global_batch_tokens", 0, f"{sequences} sequences x data.seq_len", example=1024)


def _precision(config: dict[str, Any], draft: RecipeDraft) -> None:
    switches = {key: _table(config, key).get("enabled") for key in ("bf16", "fp16")}
    bf16, fp16 = (bool(value) and value != "auto" for value in switches.values())
    if bf16 and fp16:
        raise ConfigError("bf16.enabled and fp16.enabled contradict each other. Enable one of them")
    if fp16:
        draft.lacks("fp16", "bf16 needs no loss scale and is used instead")
    if "auto" in switches.values() and not (bf16 or fp16):
        draft.leave("parallel.precision", "bf16", "your program decides: bf16, or fp32", example="bf16")
    else:
        draft.set("parallel.precision", "bf16" if bf16 or fp16 else "fp32", "bf16" if bf16 else "")


def _parallel(config: dict[str, Any], draft: RecipeDraft) -> None:
    zero = _table(config, "zero_optimization")
    stage = _number(zero, "stage") or 0
    devices = {key: _table(zero, key).get("device", "none") for key in ("offload_optimizer", "offload_param")}
    if devices["offload_param"] != "none" and stage < 3:
        raise ConfigError(f"zero_optimization.offload_param contradicts stage = {stage}: it needs stage 3")
    draft.set("parallel.zero_stage", stage, "zero_optimization.stage")
    for key, device in devices.items():
        if device == "cpu":
            draft.set("parallel.offload", True, f"zero_optimization.{key}; needs CUDA")
        elif device != "none":
            draft.lacks(f"zero_optimization.{key}.device = {device}", "parallel.offload keeps shards in host memory")
    shard = _number(zero, "zero_hpz_partition_size")
    if shard and shard > 1:
        draft.set("parallel.data_shard", shard, "zero_optimization.zero_hpz_partition_size")
    for key in ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"):
        if zero.get(key):
            draft.lacks(f"zero_optimization.{key}", "messages are not quantised")
    if mics := _number(zero, "mics_shard_size"):
        draft.set("parallel.data_shard", mics if mics > 0 else None, "zero_optimization.mics_shard_size")
    if not _is_off(_table(config, "activation_checkpointing")):
        draft.lacks("activation_checkpointing", "recomputation is parallel.recompute = 'selective' or 'full'")


def _optimizer(config: dict[str, Any], draft: RecipeDraft) -> None:
    optimizer = _table(config, "optimizer")
    params, kind = _table(optimizer, "params"), str(optimizer.get("type", ""))
    if kind.lower() == "sgd":
        draft.set("optimizer.kind", "sgd", "optimizer.type")
        draft.set("optimizer.momentum", float(_number(params, "momentum") or 0.0), "optimizer.params.momentum")
    elif kind and kind.lower() not in ("adam", "adamw", "fusedadam", "cpuadam", "deepspeedcpuadam"):
        draft.lacks(f"optimizer.type = {kind}", "the optimizer is AdamW or SGD")
    if kind and params.get("adam_w_mode") is False:
        draft.lacks("optimizer.params.adam_w_mode = false", "weight decay is decoupled, as in AdamW")
    rate = _number(params, "lr")
    if rate:
        draft.set("optimizer.learning_rate", float(rate), "optimizer.params.lr")
    else:
        draft.leave("optimizer.learning_rate", 0.0, "the peak", example=1e-4)
    betas = params.get("betas")
    if isinstance(betas, list) and len(betas) == 2:
        for key, value in zip(("beta1", "beta2"), betas, strict=True):
            draft.set(f"optimizer.{key}", _number({"betas": value}, "betas"), "optimizer.params.betas")
    elif kind.lower() != "sgd":
        draft.set("optimizer.beta2", 0.999, "DeepSpeed's default")
    draft.set("optimizer.eps", _number(params, "eps"), "optimizer.params.eps")
    draft.set("optimizer.weight_decay", float(_number(params, "weight_decay") or 0.0), "optimizer.params.weight_decay")
    clip = _number(config, "gradient_clipping")
    if clip == 0:
        draft.lacks("gradient_clipping = 0", "gradients are always clipped; the norm here is never reached")
    origin = "gradient_clipping" if clip is not None else "DeepSpeed's default since 0.19"
    draft.set("optimizer.max_gradient_norm", 1e9 if clip == 0 else float(clip or 1.0), origin)


def _schedule(config: dict[str, Any], draft: RecipeDraft) -> None:
    """DeepSpeed counts in steps; tokens need the tokens of a step."""
    scheduler = _table(config, "scheduler")
    params, kind = _table(scheduler, "params"), str(scheduler.get("type", "WarmupLR"))
    if kind not in SHAPES:
        draft.lacks(f"scheduler.type = {kind}", "shapes are cosine, linear, wsd and constant; constant is written here")
    shape = SHAPES.get(kind, "constant")
    draft.set("schedule.shape", shape, "scheduler.type" if scheduler else "no scheduler")
    if scheduler and params.get("warmup_type", "log") != "linear":
        draft.lacks(f"scheduler.params.warmup_type = {params.get('warmup_type', 'log')}", "the warm-up is linear")
    warmup, total = _number(params, "warmup_num_steps"), _number(params, "total_num_steps")
    step = draft.get("batch.global_batch_tokens")
    if not scheduler or (warmup is not None and step):
        draft.set("schedule.warmup_tokens", (warmup or 0) * (step or 0), "scheduler.params.warmup_num_steps x batch")
    else:
        draft.leave("schedule.warmup_tokens", 0, f"{_shown(warmup)} x batch.global_batch_tokens", example=0)
    length = total * step if total and step else None
    for key in ("schedule.decay_tokens",) if shape != "constant" else ():
        if length:
            draft.set(key, length, "scheduler.params.total_num_steps x batch")
        else:
            draft.leave(key, 0, f"{_shown(total)} x batch.global_batch_tokens", example=10**12)
    if shape != "constant":
        lowest = _number(params, "cos_min_ratio") if shape == "cosine" else 0.0
        draft.set(
            "schedule.final_fraction", 1e-4 if lowest is None else float(lowest), "scheduler.params.cos_min_ratio"
        )
    if length:
        draft.set("train.total_tokens", length, "scheduler.params.total_num_steps x batch")
    else:
        draft.leave("train.total_tokens", 0, "your program decides when training ends", example=10**12)


def _shown(steps: int | None) -> str:
    return "steps" if steps is None else f"{steps} steps"


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = {} if config.get(key) is None else config[key]
    if not isinstance(value, dict):
        raise ConfigError(f"{key} = {str(value)[:80]} is invalid: must be an object")
    return value


def _number(config: dict[str, Any], key: str) -> Any:
    """A number; None if the key is missing or "auto", which Hugging Face's Trainer fills in."""
    value = config.get(key)
    if value is None or value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} = {str(value)[:80]} is invalid: must be a number")
    return value


def _is_off(value: Any) -> bool:
    """Whether a value asks for nothing: false, empty, or a table of such values or with enabled = false."""
    if isinstance(value, dict):
        return value.get("enabled") is False or all(_is_off(item) for item in value.values())
    return value in (False, None, [], "", "auto")
