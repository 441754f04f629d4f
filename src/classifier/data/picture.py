"""What is read, and the parts of it: names for types."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Picture = Path | np.ndarray | Image.Image
"""What can be read: a file, pixels as uint8 (H, W) or (H, W, 1 or 3), or a Pillow image."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the stored image, which is not turned upright yet; half-open."""

Region = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

Crop = Callable[[int, int], Region]
"""(width, height) of the upright image or box -> the part of it to keep, (x1, y1, x2, y2) in its pixels."""
