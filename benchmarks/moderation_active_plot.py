"""Draw the curves that moderation_active.py --json wrote: positives found and AUPRC by the number of labels.

    python benchmarks/moderation_active_plot.py CURVES.json FILE.svg [--strategies NAME ...]    (needs matplotlib)

Lines are means over seeds, bands the range of the seeds.
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

FIRST, BATCH = 300, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--strategies", nargs="+", help="(default: all in the file)")
    args = parser.parse_args()
    found = {one["strategy"]: one for one in json.loads(args.curves.read_text())}
    mpl.rcParams.update({"svg.hashsalt": "triaxial", "svg.fonttype": "none", "font.size": 9})
    figure, both = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
    for key, title, axes in zip(("positives", "auprc"), ("positives among the labels", "AUPRC"), both, strict=True):
        for name in args.strategies or found:
            values = np.array(found[name][key])
            labels = FIRST + BATCH * np.arange(values.shape[1])
            (line,) = axes.plot(labels, values.mean(0), marker="o", markersize=3, label=name)
            axes.fill_between(labels, values.min(0), values.max(0), alpha=0.12, color=line.get_color(), linewidth=0)
        axes.set(xlabel="labels", ylabel=title, ylim=(0, None))
        axes.grid(alpha=0.3)
    both[0].legend(frameon=False)
    figure.savefig(args.file, metadata={"Date": None})


if __name__ == "__main__":
    main()
