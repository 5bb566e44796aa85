"""Axes of SVG plots: values to pixels, round tick values, grid lines and their labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def pixels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        scaled = np.log(np.maximum(values, self.low)) if self.log else values
        return self.start + (scaled - low) / (high - low) * (self.end - self.start)

    def pixel(self, value: float) -> float:
        return float(self.pixels(np.array([float(value)]))[0])


def ticks(low: float, high: float, *, most: int) -> list[float]:
    """At most `most` round values between two values: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, *, most: int) -> list[float]:
    """At most `most` powers of ten; with 2 and 5 times them if there is room, every n-th power if there is little."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in multiples if low <= m * 10.0**e <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def svg_path(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> str:
    """The `d` attribute of a line through these pixels."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def horizontal_grid(x: Axis, y: Axis, values: Sequence[float], text: Callable[[float], str]) -> list[str]:
    """A grid line across the plot at each value of `y`, with its label on the left."""
    parts = []
    for value in values:
        at = y.pixel(value)
        parts.append(f'<path class="grid" d="M{x.start:g} {at:.1f}H{x.end:g}"/>')
        parts.append(f'<text x="{x.start - 6:g}" y="{at + 3.5:.1f}" text-anchor="end">{escape(text(value))}</text>')
    return parts


def bottom_axis(x: Axis, y: Axis, values: Sequence[float], text: Callable[[float], str]) -> list[str]:
    """The axis line below the plot, with a mark and a label at each value of `x`."""
    parts = [f'<path class="axis" d="M{x.start:g} {y.start:g}H{x.end:g}"/>']
    for value in values:
        at = x.pixel(value)
        parts.append(f'<path class="axis" d="M{at:.1f} {y.start:g}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{y.start + 16:g}" text-anchor="middle">{escape(text(value))}</text>')
    return parts


def axis_titles(x: Axis, y: Axis, *, across: str, up: str) -> list[str]:
    """The names of both axes: of `x` below its labels, of `y` turned, to the left of its labels."""
    middle = (y.start + y.end) / 2
    return [
        f'<text x="{(x.start + x.end) / 2:g}" y="{y.start + 36:g}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(14 {middle:g}) rotate(-90)" text-anchor="middle">{escape(up)}</text>',
    ]


def power_text(value: float) -> str:
    """10⁻⁶ or 3·10⁻⁶; plain if that is short."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    factor, power = f"{value:.0e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"
