"""For tests: generate with an engine, as samples during training do."""

import torch.distributed as dist

from gpt.inference.generation import generate


def generated(engine, prompts, **settings):
    """The continuations that all data ranks get together."""
    with engine.as_model(together=True) as model:
        return generate(model, prompts, n_ctx=engine.settings.model.n_ctx, **settings)


def beats_of_waiting(engine, prompts):
    """The calls of `before_each` on every rank, while the last data rank alone generates and the others finish."""
    beats = [0]

    def beat():
        beats[0] += 1

    with engine.as_model(in_turns=True) as model:
        if model.data_rank == model.data_size - 1:
            generate(model, prompts, n_ctx=engine.settings.model.n_ctx, max_new_tokens=3)
        model.finish(before_each=beat)
    everyone = [0] * dist.get_world_size()
    dist.all_gather_object(everyone, beats[0])
    return everyone
