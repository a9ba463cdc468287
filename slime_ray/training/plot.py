"""A picture of a run: the loss with its terms, and the log-probabilities of both answers, over the steps."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from slime_ray.runs import Run


def plot_run(run: Run, path: Path) -> Path:
    """Draw a run's metrics.jsonl into a PNG file."""
    lines = run.metrics()
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, label in [
        ("loss", "loss"),
        ("loss/chosen", "anchor (loss/chosen)"),
        ("loss/rejected", "stabilizer (loss/rejected)"),
        ("loss/margin", "margin (loss/margin)"),
    ]:
        _line(left, lines, name, label=label)
    left.set(title="loss and its terms", xlabel="step", ylabel="nats")
    for side, colour in (("chosen", "tab:green"), ("rejected", "tab:red")):
        _line(right, lines, f"mean_logps/{side}", label=f"{side}, training batch", color=colour, alpha=0.35)
        _line(right, lines, f"eval_mean_logps/{side}", label=f"{side}, held out", color=colour, marker="o")
    right.set(title="mean log-probability of a token", xlabel="step", ylabel="nats")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(run.name)
    with path.open("wb") as file:
        figure.savefig(file, dpi=120, format="png")
    return path


def _line(axes: Axes, lines: list[dict[str, float]], name: str, **style: object) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        axes.plot(*zip(*points, strict=True), **style)  # pyright: ignore[reportArgumentType]
