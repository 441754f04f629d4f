"""A config -> a data module."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from classifier.data.cache import Cache, stored_pixels
from classifier.data.check import check_images, refuse
from classifier.data.loader import (
    EpochSampler,
    ImageDataset,
    Item,
    ResumableLoader,
    ShardSampler,
    collate,
    outlive_signals,
    require_sampler,
    training_weights,
    warn_of_untrained,
)
from classifier.data.samples import Problem, Samples, Source
from classifier.data.split import Split, Splitting, grouped, read_split
from classifier.data.transforms import EpochAugmentation, Preprocessing, sides, train_sizes
from classifier.errors import UserError, did_you_mean, require_choice, require_whole
from classifier.instantiate import build, require_targets
from classifier.parallel import worker_count

log = logging.getLogger(__name__)


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


class ClassificationDataModule(pl.LightningDataModule):
    """uint8 batches from a source.

    Args:
        source: Lists the samples.
        image_size: Pixels of a side, or (height, width).
        train_size: The same of training images where it differs, or a list of (epoch, size); see `train_sizes`.
        batch_size: Images per process and step, at most.
        num_workers: Reading processes for each training process; `auto` for its share of the cores, at most 16.
        channels, resize, crop_pct, interpolation: See `Preprocessing`.
        augment: Arguments of `Augmentation` (`crop`, `transforms`), for training alone.
        val_fraction, test_fraction, split_seed, fold, num_folds, limit_per_class: See `Splitting`.
        split_file: A split.csv, of an earlier run or your own, to be used instead; `limit_per_class` holds for it too.
        group_pattern: Regular expression, searched in each path: images for which it matches the same text (its first
            group, where it has one) stay on one side of the split, such as `patient_\\d+`.
        on_error: `raise` lists every bad file at once, `skip` leaves them out and keeps the list in `skipped`.
        check: `quick` reads every file's header and end before training, `full` decodes it, `none` trusts.
        cache: `disk` or `ram` decode the training and validation images once, for many epochs: those for validation
            as they are needed, those for training with a short side of `cache_size` pixels, from which random crops
            are cut. `none` decodes them each time.
        cache_size: By default, 8/7 of the longer side of `image_size` (256 for 224).
        cache_dir: Folder for what is kept between runs; it can be removed at any time.
        sampler: Training order: `shuffle` takes each image once an epoch; `balanced` as many of each class;
            `weighted` in proportion to the weights of `weights_file`.
        weights_file: CSV with the columns `path` and `weight`, for `sampler=weighted`.
        drop_last: Leave out the last, smaller training batch.
        seed: Of the order and the augmentation.
        classes: Names of a trained model's classes, in its order; by default the data's own.

    Attributes:
        samples: The table of all usable samples, after `setup`.
        split: Name of a part -> its rows.
        test_split: The part that testing reads; `all` for everything.
        skipped: What was left out, and why.
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: int | Sequence[int] = 224,
        train_size: int | Sequence[Any] | None = None,
        batch_size: int = 64,
        num_workers: int | str = "auto",
        channels: int = 3,
        resize: str = "crop",
        crop_pct: float = 1.0,
        interpolation: str = "bilinear",
        augment: Mapping[str, Any] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        split_file: str | None = None,
        fold: int | None = None,
        num_folds: int = 5,
        limit_per_class: int | None = None,
        group_pattern: str | None = None,
        on_error: str = "raise",
        check: str = "quick",
        cache: str = "none",
        cache_size: int | None = None,
        cache_dir: str = "data/cache",
        sampler: str = "shuffle",
        weights_file: str | None = None,
        drop_last: bool = False,
        seed: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        size = sides(image_size, "data.image_size")
        require_choice("data.on_error", on_error, ("raise", "skip"))
        require_sampler(sampler, weights_file)
        if split_file is not None and fold is not None:
            raise UserError(
                f"data.fold={fold} and data.split_file={split_file} both say which images are held out: use "
                "data.split_file=null, or data.fold=null"
            )
        require_whole("data.batch_size", batch_size, 1)
        self.source = source
        self.preprocessing = Preprocessing(size, resize, crop_pct, interpolation, channels)
        self.augmentation = EpochAugmentation(self.preprocessing, train_sizes(train_size, size), augment or {})
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.splitting = Splitting(val_fraction, test_fraction, split_seed, fold, num_folds, limit_per_class)
        self.split_file = split_file
        self.on_error = on_error
        self.check = check
        self.group_pattern = group_pattern
        self.cache_dir = Path(cache_dir)
        if cache_size is not None:
            require_whole("data.cache_size", cache_size, 1, otherwise=", or null")
        short_side = round(max(size) * 8 / 7) if cache_size is None else cache_size
        self.cache = Cache(cache, short_side, self.cache_dir)
        self.sampler = sampler
        self.weights_file = weights_file
        self.drop_last = drop_last
        self.seed = seed
        self.given_classes = classes
        self.test_split = "test"
        self.skipped: list[Problem] = []
        self._train_loader: ResumableLoader | None = None
        self._train_position: dict[str, int] | None = None
        self._cached: dict[str, Samples] = {}
        self.samples: Samples
        self.split: Split = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""
        return self.samples.classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """List, check and split the samples, once."""
        if self.split:
            return
        samples, problems = self.read()
        found = len(samples) + len(problems)
        samples, unusable = check_images(samples, self.check, self.cache_dir, getattr(self.source, "margin", 0.0))
        problems += unusable
        if problems and self.on_error == "raise":
            refuse(problems, found)
        self.skipped = problems
        if problems:
            log.warning("left out %d of %d samples that cannot be used (data.on_error=skip)", len(problems), found)
        if len(samples) == 0:
            raise UserError(f"{self.source.root} has no usable sample: name another folder with data.root=...")
        if len(samples.classes) < 2:
            raise UserError(
                f"{self.source.root} has one class only ({samples.classes[0]!r}), and a classifier needs two: name "
                "another folder with data.root=..."
            )
        self.samples = samples
        self.split = self.divide(samples)
        if "train" in self.split and self.given_classes is None:
            warn_of_untrained(samples, self.split["train"])

    def read(self) -> tuple[Samples, list[Problem]]:
        """All samples that the source lists, in the groups of `group_pattern`, and what it could not list.

        Raises:
            UserError: Wrong input.
        """
        samples, problems = self.source.read(self.given_classes)
        return samples if self.group_pattern is None else grouped(samples, str(self.group_pattern)), problems

    def divide(self, samples: Samples) -> Split:
        """The parts that training gives these samples, some or all of those that `read` lists.

        Raises:
            UserError: The split file does not fit them, or there are too few.
        """
        if self.split_file is not None:
            return self.splitting.limited(samples, read_split(Path(self.split_file), samples))
        return self.splitting.split(samples)

    def train_dataloader(self) -> DataLoader[Item]:
        rows = self.split.get("train", np.arange(0))
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self.eval_dataloader("train")  # the same few batches, in the same order, each epoch
        rank, world_size = self._place()
        self.require_batch(world_size)
        samples = self._in_cache("train") if self._caches else self.samples
        dataset = ImageDataset(samples, rows, self.augmentation, self.seed)
        weights = training_weights(self.samples, rows, self.sampler, self.weights_file)
        sampler = EpochSampler(
            len(rows),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            drop_last=self.drop_last,
            weights=weights,
            labels=None if weights is None else self.samples.labels[rows],
        )
        self._train_loader = ResumableLoader(dataset, sampler, **self._loader_settings(dataset))
        if self._train_position is not None:
            self._train_loader.load_state_dict(self._train_position)
            self._train_position = None
        return self._train_loader

    def require_batch(self, world_size: int) -> None:
        """Refuse a batch for each of `world_size` processes that the training images do not fill.

        Raises:
            UserError: With a batch size that fits.
        """
        count = len(self.split.get("train", ()))
        if count == 0:
            raise UserError(f"{self.source.root} has no training images: lower data.val_fraction or data.test_fraction")
        if count < self.batch_size * world_size:
            processes = f" on each of {world_size} processes" if world_size > 1 else ""
            fitting = max(1, count // world_size)
            raise UserError(
                f"batch size {self.batch_size}{processes} is larger than the {count} training images: "
                f"use data.batch_size={1 << (fitting.bit_length() - 1)}"
            )

    # Lightning saves the state of a loader by itself, but does not restore it where the learning-rate schedule has
    # asked for the number of steps before (2.6.6); the state of the data module it does.

    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_position = state_dict["train_loader"]

    def val_dataloader(self) -> DataLoader[Item] | list[Any]:
        return self.eval_dataloader("val") if "val" in self.split else []

    def test_dataloader(self) -> DataLoader[Item]:
        return self.eval_dataloader(self.test_split)

    def eval_dataloader(self, split: str) -> DataLoader[Item]:
        """Batches of a part of the data (or of `all`) in the table's order, not augmented.

        Raises:
            UserError: The data has no such part, or it has fewer images than there are processes.
        """
        rows = self.rows(split)
        rank, world_size = self._place()
        if len(rows) < world_size:
            raise UserError(f"{split} has {len(rows)} images for {world_size} processes: use trainer.devices=1")
        dataset = ImageDataset(self.samples, rows, self.preprocessing)
        if split == "val" and self._caches:  # other parts are read once
            dataset = ImageDataset(self._in_cache("val"), rows, stored_pixels)
        return DataLoader(
            dataset,
            collate_fn=collate,
            batch_size=self.batch_size,
            sampler=ShardSampler(len(rows), rank=rank, world_size=world_size),
            **self._loader_settings(dataset),
        )

    def rows(self, split: str) -> np.ndarray:
        """int64 rows of the Samples table that are in a part of the data, or in `all`."""
        if split == "all":
            return np.arange(len(self.samples))
        if split not in self.split:
            known = [*self.split, "all"]
            raise UserError(f"{self.source.root} has no {split} part: use split=..., {did_you_mean(split, known)}")
        return self.split[split]

    @property
    def _caches(self) -> bool:
        """Whether there is something to keep: the images of a store are decoded already."""
        return self.cache.where != "none" and self.samples.store is None

    def _in_cache(self, part: str) -> Samples:
        """The samples, with the images of `part` in the cache."""
        if part not in self._cached:
            if part == "val":
                self._cached[part] = self.cache.for_evaluation(self.samples, self.split["val"], self.preprocessing)
            else:  # folds share one
                parts = list(self.split.values()) if self.splitting.fold is not None else [self.split["train"]]
                rows = np.sort(np.concatenate(parts))
                self._cached[part] = self.cache.for_training(self.samples, rows, self.preprocessing)
        return self._cached[part]

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_settings(self, dataset: ImageDataset) -> dict[str, Any]:
        workers = worker_count(self.num_workers, self.trainer.num_devices if self.trainer is not None else 1)
        on_gpu = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        if self.num_workers == "auto" and dataset.samples.store is not None and not on_gpu:
            workers = 0  # decoded images are copied faster than workers hand them over
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": on_gpu,
            "worker_init_fn": outlive_signals,
        }


DATA_ROOTS = ("classifier.data.", "torchvision.transforms.")


def build_datamodule(settings: Mapping[str, Any], **arguments: Any) -> ClassificationDataModule:
    """Instantiate a data module's config.

    Raises:
        UserError: The config does not fit the data module.
    """
    require_targets(settings, "data", DATA_ROOTS)
    if not str(settings.get("_target_", "DataModule")).endswith("DataModule"):
        raise UserError(f"data._target_={settings['_target_']} is no data module: name one of classifier.data")
    if isinstance(settings.get("root"), str):  # ~ in a YAML file
        settings = {**settings, "root": os.path.expanduser(settings["root"])}  # noqa: PTH111
    datamodule: ClassificationDataModule = build(settings, "data", recursive=False, **arguments)
    return datamodule
