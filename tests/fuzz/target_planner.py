"""The files of `triaxial plan`: a user's tables of hardware, and rows of published runs."""

import csv
from importlib import resources
from pathlib import Path
from random import Random

from fuzzing import Target
from mutations import mutate

from launch.planning.validate import validate
from parallel.planner.hardware.tables import Cluster, find, read_hardware
from parallel.planner.published.rows import published_runs, read_rows

TABLES = """
[gpus.G1]
peak = 500
best = 0.8
attention = 0.4
memory_gib = 80
memory_gb_per_s = 2000
link_gb_per_s = 400
network = "N1"
peak_fp8 = 1000
best_fp8 = 0.7
names = ["G1-SXM", "G1 80GB"]

[networks.N1]
gb_per_s = 45.5
node = 8
latency_us = 10
words = ["fabric"]

[stacks.S1]
about = "a program"
attention = "fused"
overlap_tensor = true
tensor = 0.5
sources = ["here"]
"""
CELLS = (
    *("", "?", "-", "0", "-1", "1", "3", "1e9", "1000000", "9" * 30, "9" * 5000, "nan", "inf", "-inf", "1e400", "2.5"),
    *("x", "true", "\x1b]0;owned\x07", "\u202e", "é" * 300, "x" * 200_000, "swiglu", "stated full", "iter_time", '"'),
)


def write_tables(folder: Path) -> None:
    (folder / "hardware.toml").write_text(TABLES)


def use_tables(folder: Path) -> None:
    """As `triaxial plan --hardware FILE` finds its cluster, and predicts published runs with the tables."""
    hardware = read_hardware(folder / "hardware.toml")
    gpu = find("GPU", "g1-sxm", hardware.gpus)
    network = find("network", gpu.network, hardware.networks)
    stack = find("stack", "S1", hardware.stacks)
    row = next(row for row in read_rows(shipped_rows()) if row["metric"] == "iter_time")
    (run,), _ = published_runs([{**row, "gpu": gpu.name, "network": network.name, "stack": stack.name}], hardware)
    assert run.cluster == Cluster(gpu, network, run.cluster.node)
    assert run.fastest(run.stack)[1] > 0


def shipped_rows() -> Path:
    return Path(str(resources.files("parallel"))) / "planner" / "published" / "runs.csv"


def write_rows(folder: Path) -> None:
    """A few of the shipped rows."""
    lines = shipped_rows().read_text(encoding="utf-8").splitlines()
    (folder / "rows.csv").write_text("\n".join([lines[0], *lines[1:13]]) + "\n", encoding="utf-8")


def damage_cells(folder: Path, rng: Random) -> list[str]:
    """Change cells of rows or of the head; sometimes other damage."""
    if rng.random() < 0.25:
        return mutate(folder, rng)
    with open(folder / "rows.csv", encoding="utf-8", newline="") as file:
        rows, changes = list(csv.reader(file)), []
    for _ in range(rng.choice((1, 1, 2, 5))):
        number = rng.randrange(1 if rng.random() < 0.9 else 0, len(rows))
        if rng.random() < 0.1:
            rows[number] = rows[number][: rng.randrange(len(rows[number]) + 1)] * rng.choice((1, 1, 2))
            changes.append(f"row {number} cut or doubled")
        elif rows[number]:
            column = rng.randrange(len(rows[number]))
            rows[number][column] = rng.choice(CELLS)
            changes.append(f"row {number} column {column}: {rows[number][column][:40]!r}")
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return changes


def use_rows(folder: Path) -> None:
    """As `triaxial plan --validate FILE` prints them."""
    lines, figures = validate(folder / "rows.csv", read_hardware())
    assert lines
    assert figures["blind"]["count"] == len(figures["rows"])


TARGETS = (
    Target("hardware_tables", write_tables, use_tables, cases=120),
    Target("published_rows", write_rows, use_rows, cases=60, damage=damage_cells),
)
