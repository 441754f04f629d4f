"""Tables of paths and labels."""

from collections.abc import Callable
from pathlib import Path

from tests import generate


def photos(root: Path) -> list[tuple[str, str]]:
    """Three pictures of each of two colours below `root`; their paths and labels."""
    rows = [(f"{name}_{number}.jpg", name) for name in ("blue", "red") for number in range(3)]
    for number, (path, name) in enumerate(rows):
        generate.save(generate.picture(name, seed=number), root / path)
    return rows


def plain(root: Path) -> list[str]:
    rows = photos(root)
    root.joinpath("labels.csv").write_text("\n".join(["path,label", *(",".join(row) for row in rows)]))
    return [label for _, label in rows]


MAKERS: dict[str, Callable[[Path], list[str]]] = {"a table of one's own": plain}
