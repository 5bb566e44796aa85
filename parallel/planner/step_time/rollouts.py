"""The time of a policy's rollouts and of forward passes alone, for the price of PPO and GRPO."""

from parallel.planner.hardware.tables import Cluster, Stack
from parallel.planner.step_time.collectives import all_gather_s, group, send_s
from parallel.planner.step_time.job import Job
from parallel.planner.step_time.kernels import MEMORY_SHARE, block_s, head_s

# Of a block's kernels one after the other, without a captured graph: about 20 kernels of 6 us. Assumed, not measured.
LAUNCH_S = 1.2e-4


def sampling_s(job: Job, cluster: Cluster, stack: Stack, *, rows: int, prompt: int, response: int) -> float:
    """Seconds in which a data rank writes `rows` responses at a time: the prompts' forward, then token by token."""
    prefill = forward_s(job, cluster, stack) * rows / (job.micro_batches * job.micro_batch_size) * prompt / job.seq_len
    return prefill + response * token_s(job, cluster, stack, rows=rows, context=prompt + response // 2)


def token_s(job: Job, cluster: Cluster, stack: Stack, *, rows: int, context: int) -> float:
    """Seconds of one token of `rows` sequences. A stage works while the others wait.

    Reading the weights and the keys and values bounds it, or the products, or the launches of kernels.
    """
    model, size = job.model, 4 if job.precision == "fp32" else 2
    memory = cluster.gpu.memory_gb_per_s * 1e9 * MEMORY_SHARE
    speed = cluster.gpu.product_flops_per_s("fp32" if job.precision == "fp32" else "bf16")
    weights = size * model.block_parameters / job.tensor
    cache = 2 * size * rows * context * model.kv_heads * model.d_head / job.tensor
    products = 2 * model.block_parameters * rows / job.tensor / speed
    block = max((weights + cache) / memory, products, LAUNCH_S) * stack.overhead
    block += 4 * all_gather_s(size * rows * model.d_model, group(cluster, job.tensor, stride=1), cluster)
    if job.zero == 3 and job.shard > 1:
        block += all_gather_s(weights, group(cluster, job.shard, stride=job.tensor), cluster)
    head = size * model.padded_vocab_size * model.d_model / job.tensor / memory
    hop = send_s(size * rows * model.d_model, cluster, stride=job.tensor * job.data)
    return model.n_layers * block + head + (job.pipeline * hop if job.pipeline > 1 else 0.0)


def forward_s(job: Job, cluster: Cluster, stack: Stack) -> float:
    """Seconds of the forward of all micro-batches, which fill and leave the pipeline once."""
    forward, _ = block_s(job, cluster, stack)
    head, _ = head_s(job, cluster, stack)
    whole = (forward.total * job.model.n_layers + head.total) * stack.overhead
    return whole / job.pipeline * (job.micro_batches + job.pipeline - 1) * stack.scale
