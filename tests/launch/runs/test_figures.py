"""Both pages of a run take the metrics of a figure and their names from one table."""

from launch.runs.figures import RUN_FIGURES, label_of

METRICS = ["validation/web/loss", "loss", "memory/resident_bytes", "peak_memory_bytes", "few_shot/lambada/0", "other"]


def test_a_figure_has_its_metrics_in_the_order_of_its_lines():
    found = {figure.title: names for figure in RUN_FIGURES if (names := figure.names(METRICS))}
    assert found == {
        "Loss, nats a token": ["loss", "validation/web/loss"],
        "Memory of the main rank": ["peak_memory_bytes", "memory/resident_bytes"],
        "Few-shot tasks": ["few_shot/lambada/0"],
    }


def test_a_legend_names_a_metric_in_words():
    assert [label_of(name) for name in METRICS] == [
        "validation/web", "training", "resident", "peak", "few_shot/lambada/0", "other"
    ]  # fmt: skip
