import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from classifier.evaluation.figures import confusion_figure, image_grid, rate_figure
from tests.training.runs import random_images

TITLES = ["dog", "a name that is far too long to fit", "犬", "two\nlines", "$5", "$\\no{math$", "x_{y}^2 & <b>", ""]
# a font without these letters draws boxes
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")


def png(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "size"), [(1, (1280, 180)), (8, (1280, 180)), (9, (1280, 360))])
def test_image_grid_has_the_pixels_of_the_batch(count: int, size: tuple[int, int], channels: int) -> None:
    images = random_images(count, channels=channels)
    figure = image_grid(images, ["dog"] * count)
    assert png(figure).size == size
    [shown] = figure.axes[-1].get_images()
    array = torch.from_numpy(np.asarray(shown.get_array()))
    assert torch.equal(array.reshape(8, 8, channels).permute(2, 0, 1), images[-1])
    assert shown.get_clim() == (0, 255)  # a dark grey image stays dark


@pytest.mark.parametrize("title", TITLES)
def test_any_class_name_can_be_shown(title: str) -> None:
    figure = image_grid(random_images(1), [title])
    assert len(figure.axes[0].get_title()) <= 18
    png(figure)
    png(confusion_figure(torch.eye(2, dtype=torch.int64), [title, "other"]))


@pytest.mark.parametrize(("num_classes", "side"), [(3, 435), (30, 1650), (31, 1200), (120, 1200)])
def test_confusion_figure(num_classes: int, side: int) -> None:
    names = [f"class {number}" for number in range(num_classes)]
    figure = confusion_figure(torch.eye(num_classes, dtype=torch.int64), names)
    assert png(figure).size == (side, side)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert (shown == names) == (num_classes <= 30)


def test_confusion_figure_numbers_and_shares() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 8, 0], [0, 0, 0]])  # the last class never occurs
    axes = confusion_figure(confusion, ["a", "b", "c"]).axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "3", (1, 0): "1", (1, 1): "8"}  # (predicted, true)
    [shares] = axes.get_images()
    assert np.asarray(shares.get_array()).tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("suggested", [None, 1e-3])
def test_rate_figure_shows_where_the_loss_falls_not_where_it_diverges(suggested: float | None) -> None:
    losses = np.array([2.3, 2.3, 1.5, 1.0, 1e9])
    figure = rate_figure([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], losses.tolist(), np.minimum(losses, 5), suggested)
    low, high = figure.axes[0].get_ylim()
    assert low < 1.0 < 2.3 < high < 5
    assert ("falls fastest: 0.001" in figure.axes[0].get_legend_handles_labels()[1]) == (suggested is not None)
    assert png(figure).size == (700, 450)
