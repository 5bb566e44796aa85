"""Megatron-core's own GPTModel on CPU saves and loads its own checkpoints; its test starts two ranks of it.

megatron_program.py JOBS   JOBS: a JSON list; each job builds a model on a layout, loads or saves a checkpoint with
                           dist_checkpointing, and writes the logits of given tokens.

Megatron asks for a CUDA device in places even when it computes on a CPU. This program replaces the functions that it
calls for that; no code of ours is replaced.
"""

import contextlib
import json
import sys
from pathlib import Path

if __name__ == "__main__":  # a process that Megatron starts imports this file again but needs none of it
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt.gpt_model  # noqa: F401
    import torch
    from torch import distributed
    from torch.nn import functional


class _NoRandomStates:
    """Replaces the CUDA random states: there is no dropout here, and weights are made on the CPU."""

    def fork(self, *_):
        return contextlib.nullcontext()

    def get_states(self):
        return {}


def replace_cuda():
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.tensor_parallel import random

    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.Tensor.cuda = lambda self, *_, **__: self
    random._CUDA_RNG_STATE_TRACKER = _NoRandomStates()
    random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    if not filesystem_async.HAVE_PSUTIL:
        filesystem_async._process_memory = lambda: 0  # only logged, but without psutil a save never returns


def build(settings, *, padded_vocabulary, pipeline):
    from megatron.core import parallel_state
    from megatron.core.activations import fast_gelu
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    swiglu, norm = (
        settings["activation"] == "swiglu",
        {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[settings["norm"]],
    )
    config = TransformerConfig(
        num_layers=settings["n_layers"],
        hidden_size=settings["d_model"],
        num_attention_heads=settings["n_heads"],
        num_query_groups=settings["n_kv_heads"] or settings["n_heads"],
        ffn_hidden_size=settings["d_ff"],
        gated_linear_unit=swiglu,
        activation_func=functional.silu if swiglu else getattr(fast_gelu, "_torchdynamo_orig_callable", fast_gelu),
        normalization=norm,
        add_bias_linear=settings["bias"],
        layernorm_epsilon=settings["norm_eps"],
        init_method_std=settings["init_std"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=pipeline,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )
    rope, scaling = settings["positions"] == "rope", settings.get("rope_scaling")
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization=norm),
        vocab_size=padded_vocabulary,
        max_sequence_length=settings["n_ctx"],
        position_embedding_type="rope" if rope else "learned_absolute",
        share_embeddings_and_output_weights=settings["tied"],
        rotary_base=settings["rope_theta"],
        rope_scaling=scaling is not None,
        rope_scaling_factor=8.0 if scaling is None else scaling["factor"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
    ).eval()


def shake(model):
    """Change biases and norms from 0 and 1, at which a mix-up would not show; equal on tensor ranks that share them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def logits(model, tokens, pipeline):
    """Return the logits on the last stage, else None."""
    from megatron.core import parallel_state

    positions = torch.arange(tokens.size(1))[None]
    mask = torch.ones(1, 1, tokens.size(1), tokens.size(1), dtype=torch.bool).triu(1)  # True: not looked at
    with torch.inference_mode():
        if pipeline > 1 and not parallel_state.is_pipeline_first_stage():
            hidden = torch.empty(tokens.size(1), tokens.size(0), model.config.hidden_size)
            distributed.recv(hidden, distributed.get_rank() - 1)
            model.set_input_tensor(hidden)
        out = model(tokens, positions, mask)
        if not parallel_state.is_pipeline_last_stage():
            distributed.send(out.contiguous(), distributed.get_rank() + 1)
            return None
    return out.float()


def do(job):
    from megatron.core import dist_checkpointing, parallel_state

    tensor, pipeline = job["layout"]
    parallel_state.initialize_model_parallel(tensor, pipeline)
    torch.manual_seed(100 + distributed.get_rank())
    model = build(job["model"], padded_vocabulary=job["padded_vocabulary"], pipeline=pipeline)
    shake(model)
    if job.get("dtype"):
        model.to(getattr(torch, job["dtype"]))
    saved = model.sharded_state_dict(prefix="")
    if job.get("load"):
        state = dist_checkpointing.load({"model": saved}, job["load"])
        model.load_state_dict(state["model"])
    if job.get("save"):
        arguments = {} if job.get("arguments") is None else {"args": namespace(job["arguments"]), "iteration": 3}
        dist_checkpointing.save({"model": saved, **arguments}, job["save"])
    found = logits(model.float(), torch.load(job["tokens"]), pipeline)
    if found is not None and parallel_state.get_tensor_model_parallel_rank() == 0:
        torch.save(found[..., : job["model"]["vocab_size"]].clone(), job["logits"])
    distributed.barrier()
    parallel_state.destroy_model_parallel()


def namespace(arguments):
    """Return arguments as Megatron-LM saves them, with objects whose classes our reader must not need."""
    from argparse import Namespace

    from megatron.core.transformer.enums import AttnBackend

    return Namespace(**arguments, params_dtype=torch.float32, attention_backend=AttnBackend.auto, data_path=None)


def main(rank, jobs, store):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    replace_cuda()
    for job in jobs:
        do(job)
    distributed.destroy_process_group()


if __name__ == "__main__":
    listed = json.loads(Path(sys.argv[1]).read_text())
    start = torch.multiprocessing.start_processes  # by forking: what has been imported is imported once
    start(main, args=(listed, f"{sys.argv[1]}.store"), nprocs=2, start_method="fork")
