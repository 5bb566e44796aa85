"""Build this rank's stages of Megatron-core's GPTModel from our configuration.

Megatron-core is deprecating GPTModel in favour of HybridModel. Everything that names GPTModel is in `_gpt_model`.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from gpt.losses.base import VocabShard, VocabularyOutputs
from gpt.model.config import ModelConfig
from parallel.engines.settings import EngineSettings
from parallel.layout.layout import Layout
from parallel.layout.mesh import Mesh
from parallel.megatron.limits import has_transformer_engine


def build_chunks(settings: EngineSettings, mesh: Mesh) -> tuple[list[nn.Module], Any]:
    """This rank's stages as plain GPTModels in the compute dtype, and their TransformerConfig.

    The weights are allocated and not filled. The output layer of the last stage returns its input: see `_hidden_only`.
    """
    config = transformer_config(settings, mesh)
    chunks = []
    for virtual_stage, stage in enumerate(mesh.stages):
        model = _gpt_model(settings, config, stage=stage, virtual_stage=virtual_stage)
        if stage == settings.layout.stages - 1:
            model.output_layer.forward = MethodType(_hidden_only, model.output_layer)
        # Megatron-core makes positions and, without Transformer Engine, norms on the default device.
        chunks.append(model.to(device=mesh.device, dtype=config.params_dtype))
    return chunks, config


def transformer_config(settings: EngineSettings, mesh: Mesh) -> Any:
    """Megatron-core's configuration of the model, the layout and the precision."""
    from megatron.core.transformer import TransformerConfig

    model, layout, parallel = settings.model, settings.layout, settings.parallel
    bf16 = parallel.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    on_cuda = mesh.device.type == "cuda"
    interleaved = layout.stages > layout.pipeline
    return TransformerConfig(
        num_layers=model.n_layers,
        hidden_size=model.d_model,
        ffn_hidden_size=model.ff_width,
        num_attention_heads=model.n_heads,
        num_query_groups=model.kv_heads,
        normalization="RMSNorm" if model.norm == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=model.norm_eps,
        add_bias_linear=model.bias,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=functional.silu if model.activation == "swiglu" else _gelu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=bf16,
        tensor_model_parallel_size=layout.tensor,
        # Megatron-core's torch norm refuses it.
        sequence_parallel=parallel.sequence_parallel and layout.tensor > 1 and on_cuda and has_transformer_engine(),
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.stages // layout.pipeline if interleaved else None,
        overlap_p2p_comm=interleaved,  # batched messages of 2 pipeline ranks, to the next and to the previous stage,
        batch_p2p_comm=not interleaved,  # would be taken for one another
        pipeline_model_parallel_layout=pipeline_layout(layout) if layout.pipeline > 1 else None,
        calculate_per_token_loss=True,
        use_cpu_initialization=not on_cuda,
        perform_initialization=False,
        gradient_accumulation_fusion=False,  # an extension that must be compiled
        masked_softmax_fusion=False,  # likewise
        bias_activation_fusion=False,  # its GELU is fixed to the form with bias
        bias_dropout_fusion=False,
        **_recomputation(parallel.recompute),
    )


def _recomputation(kind: str) -> dict[str, Any]:
    if kind == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {"recompute_granularity": "selective"} if kind == "selective" else {}


def pipeline_layout(layout: Layout) -> list[list[str]]:
    """The parts of each stage in Megatron's words, from the embedding to the loss."""
    stages = [["decoder"] * blocks for blocks in layout.split]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _gpt_model(settings: EngineSettings, config: Any, *, stage: int, virtual_stage: int) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_local_spec,
        get_gpt_layer_with_transformer_engine_spec,
    )

    model, layout = settings.model, settings.layout
    if has_transformer_engine() and not config.use_cpu_initialization:
        spec = get_gpt_layer_with_transformer_engine_spec()
    else:
        spec = get_gpt_layer_local_spec(normalization=config.normalization)
    scaling = model.rope_scaling
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.n_ctx,
        pre_process=stage == 0,
        post_process=stage == layout.stages - 1,
        share_embeddings_and_output_weights=model.tied,
        position_embedding_type="rope" if model.positions == "rope" else "learned_absolute",
        rotary_base=model.rope_theta,
        rope_scaling=scaling is not None,
        rope_scaling_factor=1.0 if scaling is None else scaling.factor,
        vp_stage=virtual_stage if config.virtual_pipeline_model_parallel_size is not None else None,
    )


def _gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as in GPT-2's code."""
    return functional.gelu(x, approximate="tanh")


def _hidden_only(layer: Any, hidden: Tensor, weight: Tensor | None = None, **more: Any) -> tuple[Tensor, None]:
    """Replaces the forward pass of the output layer: the hidden states (t, b, d) that its product would take.

    Our loss computes the logits a chunk of tokens at a time. Megatron's own loss would keep all of them, and would give
    a probability to the padding of the vocabulary.
    """
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    if layer.sequence_parallel:  # backward adds up the gradients of the tensor ranks
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=layer.tp_group)
    return hidden, None


def head_outputs(model: Any, hidden: Tensor, config: ModelConfig, mesh: Mesh) -> VocabularyOutputs:
    """The input of our loss on the last stage, from a GPTModel's output (b, t, d)."""
    from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

    if not model.config.sequence_parallel:
        # Backward adds up the gradients of the tensor ranks. Here their memory is in order, as megatron-core 0.16
        # needs: it would reduce a copy of a transposed gradient and drop the result.
        hidden = copy_to_tensor_model_parallel_region(hidden, group=model.pg_collection.tp)
    weight = model.shared_embedding_or_output_weight() if config.tied else model.output_layer.weight
    return VocabularyOutputs(hidden, weight, _vocabulary_shard(config, weight, mesh))


def _vocabulary_shard(config: ModelConfig, weight: Tensor, mesh: Mesh) -> VocabShard:
    """The rows of the vocabulary that this tensor rank's part of the output weight holds."""
    group = mesh.tensor.get_group()

    def reduced(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        if mesh.layout.tensor > 1:
            dist.all_reduce(x, op=op, group=group)
        return x

    total: Callable[[Tensor], Tensor] = partial(reduced, op=dist.ReduceOp.SUM)
    largest: Callable[[Tensor], Tensor] = partial(reduced, op=dist.ReduceOp.MAX)
    rows = weight.size(0)
    return VocabShard(
        start=mesh.tensor_rank * rows,
        vocab_size=config.vocab_size,
        max_rows=rows,
        reduce_sum=total,
        reduce_max=largest,
    )
