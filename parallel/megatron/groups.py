"""Megatron's process groups of a layout."""

import torch.distributed as dist

from parallel.layout.layout import Layout


def start_groups(layout: Layout, *, seed: int) -> None:
    """Make Megatron's groups of this layout, unless an engine of this process has made them. Collective.

    Megatron keeps them in global variables, so that the engines of a process must share one layout. Ranks count tensor
    fastest, then data, then pipeline, as ours do.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    virtual = layout.stages // layout.pipeline if layout.stages > layout.pipeline else None
    if parallel_state.is_initialized():
        made = (
            parallel_state.get_tensor_model_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_data_parallel_world_size(),
            parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        )
        if made == (layout.tensor, layout.pipeline, layout.data, virtual) and _is_alive(
            parallel_state.get_tensor_model_parallel_group()
        ):
            return
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        create_gloo_process_groups=False,
        order="tp-cp-ep-dp-pp",
    )
    model_parallel_cuda_manual_seed(seed)  # its layers fork this generator, although nothing here is random


def data_group() -> dist.ProcessGroup:
    """The data ranks with this rank's pipeline and tensor coordinates."""
    from megatron.core import parallel_state

    group: dist.ProcessGroup = parallel_state.get_data_parallel_group()
    return group


def _is_alive(group: dist.ProcessGroup) -> bool:
    """Return whether a group belongs to the present default process group."""
    try:
        dist.get_group_rank(group, dist.get_rank())
    except (ValueError, RuntimeError):
        return False
    return True
