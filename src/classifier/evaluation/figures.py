"""Pictures for TensorBoard and the run directory; drawn without a screen."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure


def image_grid(images: torch.Tensor, titles: Sequence[str], columns: int = 8) -> Figure:
    """Images uint8 (N, C, H, W) with a title each."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.8 * rows), layout="constrained")
    for number, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title if len(title) <= 18 else title[:17] + "…", fontsize=8, parse_math=False)
        axes.axis("off")
    return figure


def confusion_figure(confusion: torch.Tensor, classes: Sequence[str]) -> Figure:
    """Confusion matrix int64 (K, K), true class by predicted class, coloured by the share of each true class."""
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    readable = len(classes) <= 30  # above that, names and numbers only smear
    side = 3 + 0.45 * len(classes) if readable else 12
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if readable:
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
        for row, column in confusion.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=color, fontsize=8)
    return figure


def bar_figure(values: Sequence[float], names: Sequence[str], label: str) -> Figure:
    """A bar from 0 to 1 for each name, the longest on top; none for nan. Of many names, the 15 longest and shortest."""
    order = np.argsort(-np.asarray(values), kind="stable")
    order = np.concatenate([order[:15], order[-15:]]) if len(order) > 30 else order
    figure = Figure(figsize=(7, 1.2 + 0.25 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(order)), np.nan_to_num(np.asarray(values)[order]), color="tab:blue")
    axes.set_yticks(range(len(order)), [names[number] for number in order], parse_math=False)
    axes.set(xlabel=label, xlim=(0, 1))
    axes.invert_yaxis()
    return figure


def rate_figure(rates: Sequence[float], losses: Sequence[float], smoothed: np.ndarray, best: float | None) -> Figure:
    """Loss by learning rate, as it was and smoothed, with the rate that is suggested as the best."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="tab:blue", alpha=0.3, label="loss of the step")
    axes.plot(rates, smoothed, color="tab:blue", label="smoothed")
    if best is not None:
        axes.axvline(best, color="tab:red", linestyle="--", label=f"falls fastest: {best:.2g}")
    low, start = min(losses), smoothed[0]
    fall = (start - low) or 1.0
    axes.set_ylim(low - 0.1 * fall, start + 0.5 * fall)  # the rest is where it diverges
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.legend()
    return figure
