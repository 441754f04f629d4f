"""The keys that every data section of a config has."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class DataSettings(TypedDict, total=False):
    """What every data module takes beside its source; see `ClassificationDataModule`."""

    image_size: int | Sequence[int]
    train_size: int | Sequence[Any] | None
    batch_size: int
    num_workers: int | str
    channels: int
    resize: str
    crop_pct: float
    interpolation: str
    augment: Mapping[str, Any] | None
    val_fraction: float
    test_fraction: float
    split_seed: int
    split_file: str | None
    fold: int | None
    num_folds: int
    limit_per_class: int | None
    group_pattern: str | None
    on_error: str
    check: str
    cache: str
    cache_size: int | None
    cache_dir: str
    sampler: str
    weights_file: str | None
    drop_last: bool
    seed: int
    classes: Sequence[str] | None
