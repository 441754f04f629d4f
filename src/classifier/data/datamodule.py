"""A table of samples -> batches: what all data modules share."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from classifier.data import labels, loader
from classifier.data.cache import cached, stored_pixels
from classifier.data.check import check_images, kinds, refuse, warn_of_values
from classifier.data.copies import group_augmented, group_copies, warn_of_leaks
from classifier.data.image import Box, Picture
from classifier.data.samples import BOX, SPLITS, usable, with_labels
from classifier.data.split import Splitting, grouped, read_split
from classifier.data.transforms import EpochAugmentation, Preprocessing, sides, train_sizes
from classifier.errors import UserError, did_you_mean, require_choice, require_flag, require_whole
from classifier.instantiate import build
from classifier.parallel import worker_count

log = logging.getLogger(__name__)


class ClassificationDataModule(pl.LightningDataModule):
    """uint8 batches of the samples that a data set lists.

    A data set is a sub-class with a method `list_samples`, and `read_images` where its images are not files. It passes
    the settings that are not its own on to this class.

    Args:
        root: Folder of the data (`~` is the home folder), or its file.
        image_size: Pixels of a side, or (height, width).
        train_size: The same of training images where it differs, or a list of (epoch, size); see `train_sizes`.
        batch_size: Images per process and step, at most.
        num_workers: Reading processes for each training process; `auto` for its share of the cores, at most 16.
        channels, resize, crop_pct, interpolation, value_range: See `Preprocessing`.
        augment: Arguments of `Augmentation` (`crop`, `transforms`), for training alone.
        val_fraction, test_fraction, split_seed, fold, num_folds, limit_per_class: See `Splitting`.
        split_file: A split.csv, of an earlier run or your own, to be used instead; `limit_per_class` holds for it too.
        group_pattern: Regular expression, searched in each path: images for which it matches the same text (its first
            group, where it has one) stay on one side of the split, such as `patient_\\d+`.
        group_duplicates: So do equal and nearly equal images, for which all are read once before training.
        on_error: `raise` lists every bad file at once, `skip` leaves them out and keeps the list in `skipped`.
        check: `quick` reads every file's header and end before training, `full` decodes it, `none` trusts.
        cache: `disk` decodes the training and validation images once, for many epochs: those for validation as they
            are needed, those for training with a short side of `cache_size` pixels, from which random crops are cut.
            `none` decodes them each time.
        cache_size: By default, 8/7 of the longer side of `image_size` (256 for 224).
        cache_dir: Folder for what is kept between runs; it can be removed at any time.
        sampler: Training order: `shuffle` takes each image once an epoch; `balanced` as many of each class;
            `weighted` in proportion to the weights of `weights_file`.
        weights_file: CSV with the columns `path` and `weight`, for `sampler=weighted`.
        drop_last: Leave out the last, smaller training batch.
        seed: Of the order and the augmentation.
        classes: Names of a trained model's classes, in its order; by default the data's own.
        task: `single_label`, or `multi_label` for several labels an image, or none.

    Attributes:
        samples: The table of all usable samples, after `setup`; see `classifier.data.samples`.
        skipped: `path` and `problem` of those that were left out.
        test_split: The part that testing reads; `all` for everything.
        margin: By which boxes are grown on each side, as a share of their sides.
    """

    samples: pd.DataFrame
    skipped: pd.DataFrame
    margin: float = 0.0

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int | Sequence[int] = 224,
        train_size: int | Sequence[Any] | None = None,
        batch_size: int = 64,
        num_workers: int | str = "auto",
        channels: int = 3,
        resize: str = "crop",
        crop_pct: float = 1.0,
        interpolation: str = "bilinear",
        value_range: Sequence[float] | None = None,
        augment: Mapping[str, Any] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        split_file: str | None = None,
        fold: int | None = None,
        num_folds: int = 5,
        limit_per_class: int | None = None,
        group_pattern: str | None = None,
        group_duplicates: bool = False,
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
        task: str = labels.SINGLE,
    ) -> None:
        super().__init__()
        require_choice("task", task, (labels.SINGLE, labels.MULTI))
        self.task = task
        size = sides(image_size, "data.image_size")
        require_choice("data.on_error", on_error, ("raise", "skip"))
        require_choice("data.cache", cache, ("none", "disk"))
        if split_file is not None and fold is not None:
            raise UserError(f"data.fold={fold} and data.split_file={split_file} exclude each other: use data.fold=null")
        for key, value in {"batch_size": batch_size, "cache_size": 1 if cache_size is None else cache_size}.items():
            require_whole(f"data.{key}", value, 1)
        self.root, self.cache_dir = Path(root).expanduser(), Path(cache_dir)
        values: Any = tuple(value_range) if isinstance(value_range, list) else value_range
        self.preprocessing = Preprocessing(size, resize, crop_pct, interpolation, channels, values)
        self.augmentation = EpochAugmentation(self.preprocessing, train_sizes(train_size, size), augment or {})
        self.splitting = Splitting(val_fraction, test_fraction, split_seed, fold, num_folds, limit_per_class, task)
        self.split_file, self.group_pattern, self.given_classes = split_file, group_pattern, classes
        self.batch_size, self.num_workers, self.drop_last = batch_size, num_workers, drop_last
        self.on_error, self.check, self.group_duplicates = on_error, check, group_duplicates
        self.cache, self.cache_size = cache, cache_size or round(max(size) * 8 / 7)
        self.sampler, self.weights_file, self.seed = sampler, weights_file, seed
        self.test_split = "test"
        self._train_loader: loader.ResumableLoader | None = None
        self._train_position: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Fetch or make what is missing; called once on each machine."""

    def list_samples(self) -> pd.DataFrame:
        """The table of all samples, with those that cannot be used; see `classifier.data.samples`.

        Raises:
            UserError: Wrong input.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method list_samples")

    def read_images(self, items: np.ndarray) -> Sequence[Picture]:
        """The images that are not files, by their `item` in the table; called in reading processes.

        They get a copy of this object without its table, trainer and loaders.

        Args:
            items: int64 (N,).
        """
        raise NotImplementedError(f"{type(self).__name__} lists samples with an item, and needs a method read_images")

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("samples", "skipped", "_images")
        state = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**state, "trainer": None, "_train_loader": None}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""
        return tuple(labels.classes_of(self.samples["label"], self.task))

    def class_counts(self, part: str) -> pd.Series:
        """How many images of a part each class has, by its name."""
        of_part = self.samples.loc[self.samples["split"] == part, "label"]
        return pd.Series(labels.class_counts(of_part, self.task), [*self.classes])

    @property
    def parts(self) -> list[str]:
        """The parts that have samples."""
        return [part for part in SPLITS if (self.samples["split"] == part).any()]

    def rows(self, part: str) -> np.ndarray:
        """int64, the positions in `samples` of a part of the data, or of `all`."""
        if part == "all":
            return np.arange(len(self.samples))
        rows = np.flatnonzero(self.samples["split"] == part)
        if len(rows) == 0:
            hint = did_you_mean(part, [*self.parts, "all"])
            raise UserError(f"{self.root} has no {part} part: use split=..., {hint}")
        return rows

    def images_of(self, table: pd.DataFrame) -> loader.Images:
        """What reads the images of each row of a table."""
        if BOX[0] in table and table[BOX[0]].dtype.kind == "f":  # no pixels yet
            table = table.drop(columns=BOX)
        # by a copy without loaders: one that held itself would be freed late, and its reading processes with it
        return loader.Images.of(
            table, self.root, copy.copy(self).read_images, self.preprocessing.value_range, self.task
        )

    def image(self, row: int) -> Picture:
        """What `decode` reads for a row of `samples`."""
        return self._images.picture(row)

    def box(self, row: int) -> Box | None:
        """(x1, y1, x2, y2) in stored pixels."""
        return self._images.box(row)

    def setup(self, stage: str | None = None) -> None:
        """List, check and split the samples, once."""
        if "samples" in vars(self):
            return
        table = self.read()
        table = check_images(table, self.images_of(table), self.check, self.cache_dir, self.margin)
        good = usable(table)
        skipped = table.reindex(columns=["path", "problem"])[~good].drop_duplicates(ignore_index=True)
        if len(skipped) and self.on_error == "raise":
            refuse(skipped, len(table))
        if len(skipped):
            what = f"left out {(~good).sum()} of {len(table)} samples (data.on_error=skip):"
            log.warning("%s", "\n".join([what, *kinds(skipped)]))
        samples = table[good].drop(columns="problem", errors="ignore").reset_index(drop=True)
        classes = samples["label"].cat.categories.tolist()
        if samples.empty or len(classes) < 2:
            found = f"{len(samples)} usable samples of the classes {classes[:5]}"
            raise UserError(f"{self.root} has {found}, too few to train: name another folder with data.root=...")
        self.samples, self.skipped = self.divide(samples), skipped
        self._images = self.images_of(self.samples)
        if self.check != "none":
            warn_of_values(len(samples), self.image, self.preprocessing.value_range)
        if self.check != "none" and "item" not in samples:
            warn_of_leaks(self.samples, self.root)
        counts = self.class_counts("train")
        names = counts.index[counts == 0].tolist()
        if self.given_classes is None and len(names) < len(counts) and names:
            found = f"{len(names)} of {len(counts)} classes have no training image, and will not be recognized"
            log.warning("%s: add some, or remove the classes (%s)", found, ", ".join(names[:5]))

    def read(self) -> pd.DataFrame:
        """All samples that the data set lists, with labels and groups, and with those that cannot be used.

        Raises:
            UserError: Wrong input.
        """
        table = self.list_samples()
        if self.group_pattern is not None:
            table = grouped(table, str(self.group_pattern))
        known = with_labels if self.task == labels.SINGLE else labels.with_label_sets
        return known(group_augmented(table), self.given_classes, f"{self.root} has the class")

    def divide(self, table: pd.DataFrame, facts: tuple[pd.DataFrame, np.ndarray] | None = None) -> pd.DataFrame:
        """`table` with the parts that training gives to these samples, some or all of the usable ones of `read`.

        Args:
            facts: See `group_copies`.

        Raises:
            UserError: The split file does not fit them, or there are too few.
        """
        require_flag("data.group_duplicates", self.group_duplicates)
        if self.group_duplicates and self.split_file is None:
            table = group_copies(table, self.images_of(table), facts)
        if self.split_file is not None:
            parts = self.splitting.limited(table, read_split(Path(self.split_file), table))
        else:
            parts = self.splitting.split(table)
        return table.assign(split=parts)

    def train_dataloader(self) -> DataLoader[loader.Item]:
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self.eval_dataloader("train")  # the same few batches, in the same order, each epoch
        rank, world_size = self._place()
        self.require_batch(world_size)
        rows = self.rows("train")
        images = self._images
        if self._caches:  # folds share one
            kept = rows if self.splitting.fold is None else np.flatnonzero(self.samples["split"].notna())
            images = cached(images, kept, self.preprocessing, self.cache_dir, self.cache_size)
        dataset = loader.ImageDataset(images, rows, self.augmentation, self.seed)
        weights = loader.training_weights(self.samples, rows, self.sampler, self.weights_file, self.task)
        order = {"seed": self.seed, "drop_last": self.drop_last, "weights": weights, "labels": images.labels[rows]}
        sampler = loader.EpochSampler(len(rows), self.batch_size, rank=rank, world_size=world_size, **order)
        self._train_loader = loader.ResumableLoader(dataset, sampler, **self._loader_settings(dataset))
        if self._train_position is not None:
            self._train_loader.load_state_dict(self._train_position)
        self._train_position = None
        return self._train_loader

    def require_batch(self, world_size: int) -> None:
        """Refuse a batch for each of `world_size` processes that the training images do not fill.

        Raises:
            UserError: With a batch size that fits.
        """
        count = int((self.samples["split"] == "train").sum())
        if count == 0:
            raise UserError(f"{self.root} has no training images: lower data.val_fraction or data.test_fraction")
        if count < self.batch_size * world_size:
            found = f"data.batch_size={self.batch_size}" + f" in each of {world_size} processes" * (world_size > 1)
            hint = f"data.batch_size={1 << (max(1, count // world_size).bit_length() - 1)}"
            raise UserError(f"{found} takes more images than the {count} to train on: use {hint}")

    # Lightning saves the state of a loader by itself, but does not restore it where the learning-rate schedule has
    # asked for the number of steps before (2.6.6); the state of the data module it does.

    def state_dict(self) -> dict[str, Any]:
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._train_position = state_dict["train_loader"]

    def val_dataloader(self) -> DataLoader[loader.Item] | list[Any]:
        return self.eval_dataloader("val") if "val" in self.parts else []

    def test_dataloader(self) -> DataLoader[loader.Item]:
        return self.eval_dataloader(self.test_split)

    def eval_dataloader(self, part: str) -> DataLoader[loader.Item]:
        """Batches of a part of the data (or of `all`) in the table's order, not augmented.

        Raises:
            UserError: The data has no such part, or it has fewer images than there are processes.
        """
        rows = self.rows(part)
        rank, world_size = self._place()
        if len(rows) < world_size:
            raise UserError(f"{part}: fewer images ({len(rows)}) than processes ({world_size}), use trainer.devices=1")
        dataset = loader.ImageDataset(self._images, rows, self.preprocessing)
        if part == "val" and self._caches:  # other parts are read once
            images = cached(self._images, rows, self.preprocessing, self.cache_dir)
            dataset = loader.ImageDataset(images, rows, stored_pixels)
        sampler = loader.ShardSampler(len(rows), rank=rank, world_size=world_size)
        settings = {"collate_fn": loader.collate, **self._loader_settings(dataset)}
        return loader.Loader(dataset, batch_size=self.batch_size, sampler=sampler, **settings)

    @property
    def _caches(self) -> bool:
        """Whether there is something to keep: images that are not files are decoded already."""
        return self.cache != "none" and "item" not in self.samples

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader_settings(self, dataset: loader.ImageDataset) -> dict[str, Any]:
        workers = worker_count(self.num_workers, self.trainer.num_devices if self.trainer is not None else 1)
        on_gpu = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        if self.num_workers == "auto" and dataset.images.items is not None and not on_gpu:
            workers = 0  # decoded images are copied faster than workers hand them over
        settings = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": on_gpu}
        return {**settings, "worker_init_fn": loader.end_with_main}


def build_datamodule(settings: Mapping[str, Any], **arguments: Any) -> ClassificationDataModule:
    """Instantiate a data module's config.

    Raises:
        UserError: The config does not fit the data module.
    """
    datamodule = build(settings, "data", recursive=False, **arguments)
    if not isinstance(datamodule, ClassificationDataModule):
        raise UserError(f"data._target_={settings['_target_']} is no data module: name one of classifier.data")
    return datamodule
