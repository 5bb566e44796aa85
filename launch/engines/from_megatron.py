"""Turn the flags of Megatron-LM's pretrain_gpt.py into a recipe.

A flag that is left out has the default of Megatron-LM's megatron/training/arguments.py.
"""

from collections.abc import Sequence

from gpt.errors import ConfigError, did_you_mean
from launch.engines.megatron_flags import Flags, as_number
from launch.engines.megatron_model import data_section, model_section, run_section
from launch.engines.megatron_unmatched import LACKING, UNNEEDED
from launch.engines.recipe_draft import RecipeDraft

TITLE = "Made by `triaxial recipe from-megatron` from the flags of Megatron-LM's pretrain_gpt.py."


def recipe_from_megatron(words: Sequence[str], overrides: Sequence[str]) -> str:
    """The recipe's text. ConfigError: flags contradict each other, or one that is needed is missing."""
    flags, draft = Flags(words), RecipeDraft(TITLE)
    draft.override(overrides)
    draft.hint_engine("megatron", "Megatron-core")
    for section in (
        *(run_section, model_section, data_section),
        *(parallel_section, batch_section, optimizer_section, schedule_section),
    ):
        section(flags, draft)
    _sort_the_rest(flags, draft)
    return draft.text()


def parallel_section(flags: Flags, draft: RecipeDraft) -> None:
    tensor = flags.number("--tensor-model-parallel-size", 1)
    draft.set("parallel.tensor", tensor, "--tensor-model-parallel-size")
    if tensor > 1:
        shares = flags.switch("--sequence-parallel")
        draft.set("parallel.sequence_parallel", shares, "--sequence-parallel" if shares else "no --sequence-parallel")
    pipeline = flags.number("--pipeline-model-parallel-size", 1)
    draft.set("parallel.pipeline", pipeline, "--pipeline-model-parallel-size")
    flags.exclude("--num-layers-per-virtual-pipeline-stage", "--num-virtual-stages-per-pipeline-rank")
    layers = flags.number("--num-layers-per-virtual-pipeline-stage")
    stages = flags.number("--num-virtual-stages-per-pipeline-rank")
    if layers is not None:
        total = draft.get("model.n_layers")
        if total % (pipeline * layers):
            raise ConfigError(
                f"--num-layers-per-virtual-pipeline-stage {layers} is invalid: {pipeline} pipeline ranks x {layers} "
                f"layers must divide --num-layers {total}"
            )
        stages = total // pipeline // layers
    if pipeline > 1 and stages and stages > 1:
        draft.set("parallel.schedule", "interleaved_1f1b", "virtual pipeline stages")
        draft.set("parallel.stages_per_rank", stages, "virtual pipeline stages")
    flags.exclude("--bf16", "--fp16")
    if flags.switch("--fp16"):
        draft.lacks("--fp16", "bf16 needs no loss scale and is used instead")
    low = flags.switch("--bf16") or "--fp16" in flags
    draft.set("parallel.precision", "bf16" if low else "fp32", "--bf16" if "--bf16" in flags else "")
    _sharding(flags, draft)
    flags.exclude("--recompute-activations", "--recompute-granularity")
    recompute = "selective" if flags.switch("--recompute-activations") else flags.text("--recompute-granularity")
    draft.set("parallel.recompute", recompute, "--recompute-granularity")


def _sharding(flags: Flags, draft: RecipeDraft) -> None:
    """ZeRO 1 for the distributed optimizer; for FSDP, the stage of its strategy."""
    fsdp = [flag for flag in ("--use-megatron-fsdp", "--use-torch-fsdp2", "--use-custom-fsdp") if flags.switch(flag)]
    optimizer = flags.switch("--use-distributed-optimizer")
    stages = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
    strategy = flags.text("--data-parallel-sharding-strategy", "optim_grads_params" if fsdp else None)
    if strategy is not None and strategy not in stages:
        raise ConfigError(f"--data-parallel-sharding-strategy {strategy} is invalid: use one of {', '.join(stages)}")
    if fsdp and strategy is not None:
        draft.set("parallel.zero_stage", stages[strategy], fsdp[0])
    else:
        draft.set("parallel.zero_stage", 1 if optimizer else 0, "--use-distributed-optimizer" if optimizer else "")


def batch_section(flags: Flags, draft: RecipeDraft) -> None:
    length = draft.get("data.seq_len")
    micro, whole = flags.number("--micro-batch-size"), flags.number("--global-batch-size")
    for flag, value in (("--micro-batch-size", micro), ("--global-batch-size", whole)):
        if value is None:
            raise ConfigError(f"{flag} is missing: a recipe needs its size. Add {flag} N")
    draft.set("batch.micro_batch_size", micro, "--micro-batch-size")
    draft.set("batch.global_batch_tokens", whole * length, f"--global-batch-size {whole} x --seq-length {length}")
    if ramp := flags.words("--rampup-batch-size"):
        if len(ramp) != 3:
            raise ConfigError("--rampup-batch-size is invalid: it takes START INCREMENT SAMPLES")
        start, step, samples = (int(as_number("--rampup-batch-size", word)) for word in ramp)
        for key, value in (("initial", start), ("increment", step)):
            draft.set(f"batch.ramp_{key}_tokens", value * length, "--rampup-batch-size")
        draft.set("batch.ramp_tokens", samples * length, "--rampup-batch-size")


def optimizer_section(flags: Flags, draft: RecipeDraft) -> None:
    rate, kind = flags.number("--lr"), flags.text("--optimizer", "adam")
    if rate is None:
        raise ConfigError("--lr is missing: a recipe needs optimizer.learning_rate. Add --lr RATE")
    draft.set("optimizer.learning_rate", float(rate), "--lr")
    if kind == "sgd":
        draft.set("optimizer.kind", "sgd", "--optimizer")
        draft.set("optimizer.momentum", float(flags.number("--sgd-momentum", 0.9)), "--sgd-momentum")
    elif kind != "adam":
        draft.lacks(f"--optimizer {kind}", "the optimizer is AdamW or SGD")
    for flag, key, default in (
        ("--adam-beta1", "beta1", 0.9),
        ("--adam-beta2", "beta2", 0.999),
        ("--adam-eps", "eps", 1e-8),
        ("--weight-decay", "weight_decay", 0.01),
        ("--clip-grad", "max_gradient_norm", 1.0),
    ):
        value = float(flags.number(flag, default))
        if flag == "--clip-grad" and value == 0:
            draft.lacks("--clip-grad 0", "gradients are always clipped; the norm here is never reached")
            value = 1e9
        draft.set(f"optimizer.{key}", value, flag if flag in flags else "Megatron-LM's default")


def schedule_section(flags: Flags, draft: RecipeDraft) -> None:
    """Everything that Megatron-LM counts in iterations or samples, in tokens."""
    by_iterations, by_samples = "--train-iters" in flags, "--train-samples" in flags
    flags.exclude("--train-iters", "--train-samples")
    for flag in flags.values:
        if flag.startswith("--lr-") and flag.endswith("-samples" if by_iterations else "-iters"):
            raise ConfigError(
                f"{flag} contradicts {'--train-iters' if by_iterations else '--train-samples'}: count all in "
                f"{'iterations' if by_iterations else 'samples'}"
            )
    if by_iterations and "--rampup-batch-size" in flags:
        raise ConfigError("--rampup-batch-size contradicts --train-iters. Count in samples, with --train-samples")
    if not (by_iterations or by_samples):
        raise ConfigError("--train-iters and --train-samples are missing: a recipe needs train.total_tokens. Add one")
    step, length = draft.get("batch.global_batch_tokens"), draft.get("data.seq_len")
    unit, tokens = ("iters", step) if by_iterations else ("samples", length)
    total = flags.number(f"--train-{unit}") * tokens
    draft.set("train.total_tokens", total, f"--train-{unit} x {tokens:,} tokens")
    decay = flags.number(f"--lr-decay-{unit}")
    decay = total if decay is None else decay * tokens
    flags.exclude("--lr-warmup-fraction", f"--lr-warmup-{unit}")
    fraction, warmup = flags.number("--lr-warmup-fraction"), flags.number(f"--lr-warmup-{unit}", 0) * tokens
    draft.set("schedule.warmup_tokens", warmup if fraction is None else int(fraction * decay), "--lr-warmup-*")
    _shape(flags, draft, decay=decay, cooldown=(flags.number(f"--lr-wsd-decay-{unit}") or 0) * tokens)
    every = flags.number("--save-interval")
    draft.set("checkpoint.every_tokens", every and every * step, f"--save-interval x {step:,} tokens")
    keep = flags.number("--save-retain-interval")
    draft.set("checkpoint.keep_every_tokens", keep and keep * step, "--save-retain-interval")
    evaluate, batches = flags.number("--eval-interval", 1000), flags.number("--eval-iters", 100)
    if draft.get("data.validation") and batches:
        draft.set("train.evaluate_every_tokens", evaluate * step, "--eval-interval")
        draft.set("train.validation_tokens", batches * step, "--eval-iters")
    minutes = flags.number("--exit-duration-in-mins")
    draft.set("train.stop_after_s", minutes and 60 * minutes, "--exit-duration-in-mins")


def _shape(flags: Flags, draft: RecipeDraft, *, decay: int, cooldown: int) -> None:
    style, low = flags.text("--lr-decay-style", "linear"), flags.number("--min-lr", 0.0)
    shape = {"WSD": "wsd"}.get(style or "", style)
    if style == "inverse-square-root":
        draft.lacks(f"--lr-decay-style {style}", "shapes are cosine, linear, wsd and constant; linear is written here")
        shape = "linear"
    draft.set("schedule.shape", shape, "--lr-decay-style" if "--lr-decay-style" in flags else "Megatron-LM's default")
    if shape != "constant":
        draft.set("schedule.decay_tokens", decay, "--lr-decay-*, else all of the training")
        draft.set("schedule.final_fraction", round(low / draft.get("optimizer.learning_rate"), 12), "--min-lr / --lr")
    end = flags.text("--lr-wsd-decay-style", "exponential")
    if shape == "wsd":
        draft.set("schedule.cooldown_tokens", cooldown, "--lr-wsd-decay-*")
        if end != "linear":
            draft.lacks(f"--lr-wsd-decay-style {end}", "the fall at the end is linear")


def _sort_the_rest(flags: Flags, draft: RecipeDraft) -> None:
    for name, values in flags.values.items():
        if name in flags.used:
            continue
        shown = " ".join([name, *values])
        if name in UNNEEDED:
            draft.unneeded.append(shown)
        elif name in LACKING:
            draft.lacks(shown, LACKING[name])
        else:
            known = [*flags.used, *UNNEEDED, *LACKING]
            draft.unknown.append(f"{shown} {did_you_mean(name, known)}".rstrip())
