"""For tests: generate with an engine, as samples during training do."""

from gpt.inference.generation import generate


def generated(engine, prompts, **settings):
    """The continuations that all data ranks get together."""
    with engine.as_model(together=True) as model:
        return generate(model, prompts, n_ctx=engine.settings.model.n_ctx, **settings)
