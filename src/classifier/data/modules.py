"""The data modules that configs name: each gives the common one its source."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from classifier.data.annotation_crop import VocSource
from classifier.data.arrays import CACHE_DIR, ArraySource
from classifier.data.coco import CocoSource
from classifier.data.datamodule import ClassificationDataModule, DataSettings
from classifier.data.digits import DigitsSource
from classifier.data.image_folder import FolderSource
from classifier.data.stanford_dogs import URL, StanfordDogsSource
from classifier.data.table import TableSource
from classifier.data.torchvision_set import TorchvisionSource


class ImageFolderDataModule(ClassificationDataModule):
    """root/<class>/*.jpg, split for you; or root/{train,val,test}/<class>, taken as they are. See `FolderSource`."""

    def __init__(self, root: str | Path, **settings: Unpack[DataSettings]) -> None:
        super().__init__(FolderSource(Path(root)), **settings)


class AnnotationCropDataModule(ClassificationDataModule):
    """One sample per box of PASCAL VOC XML files, cropped while decoding. See `VocSource`."""

    def __init__(
        self,
        root: str | Path,
        *,
        images: str = "images",
        annotations: str = "annotations",
        image_sets: str | None = None,
        objects: str = "all",
        margin: float = 0.0,
        class_from: str = "name",
        difficult: str = "keep",
        truncated: str = "keep",
        **settings: Unpack[DataSettings],
    ) -> None:
        source = VocSource(
            Path(root),
            images=images,
            annotations=annotations,
            image_sets=image_sets,
            objects=objects,
            margin=margin,
            class_from=class_from,
            difficult=difficult,
            truncated=truncated,
        )
        super().__init__(source, **settings)


class StanfordDogsDataModule(ClassificationDataModule):
    """Stanford Dogs, cropped by its boxes; downloaded once. See `StanfordDogsSource`."""

    def __init__(
        self,
        root: str | Path,
        *,
        download: bool = True,
        url: str = URL,
        sha256: dict[str, str] | None = None,
        objects: str = "largest",
        margin: float = 0.0,
        **settings: Unpack[DataSettings],
    ) -> None:
        source = StanfordDogsSource(
            Path(root), download=download, url=url, sha256=sha256, objects=objects, margin=margin
        )
        super().__init__(source, **settings)


class DigitsDataModule(ClassificationDataModule):
    """Scikit-learn's handwritten digits, written once as an image folder. See `DigitsSource`."""

    def __init__(self, root: str | Path = "data/digits", **settings: Unpack[DataSettings]) -> None:
        super().__init__(DigitsSource(Path(root)), **settings)


class CocoDataModule(ClassificationDataModule):
    """One sample per box of COCO JSON files, cropped while decoding. See `CocoSource`."""

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Mapping[str, str],
        images: str | Mapping[str, str] = "images",
        objects: str = "all",
        margin: float = 0.0,
        crowd: str = "skip",
        **settings: Unpack[DataSettings],
    ) -> None:
        source = CocoSource(
            Path(root), annotations=annotations, images=images, objects=objects, margin=margin, crowd=crowd
        )
        super().__init__(source, **settings)


class TableDataModule(ClassificationDataModule):
    """The images, or boxes in them, that a CSV or TSV lists. See `TableSource`."""

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        table: str,
        path_column: str = "path",
        label_column: str = "label",
        box_columns: Sequence[str] | None = None,
        box_format: str = "xyxy",
        split_column: str | None = None,
        group_column: str | None = None,
        images: str | None = None,
        extension: str | None = None,
        **settings: Unpack[DataSettings],
    ) -> None:
        source = TableSource(
            None if root is None else Path(root),
            table=table,
            path_column=path_column,
            label_column=label_column,
            box_columns=box_columns,
            box_format=box_format,
            split_column=split_column,
            group_column=group_column,
            images=images,
            extension=extension,
        )
        super().__init__(source, **settings)


class ArrayDataModule(ClassificationDataModule):
    """Images and labels in numpy arrays, mapped from their file. See `ArraySource`."""

    def __init__(
        self,
        root: str | Path,
        *,
        x_train: str | None = "X_train",
        y_train: str | None = "Y_train",
        x_val: str | None = None,
        y_val: str | None = None,
        x_test: str | None = "X_test",
        y_test: str | None = "Y_test",
        classes_key: str | None = "classes",
        value_range: Sequence[float] | None = None,
        **settings: Unpack[DataSettings],
    ) -> None:
        source = ArraySource(
            Path(root),
            x_train=x_train,
            y_train=y_train,
            x_val=x_val,
            y_val=y_val,
            x_test=x_test,
            y_test=y_test,
            classes_key=classes_key,
            value_range=value_range,
            cache_dir=Path(settings.get("cache_dir", CACHE_DIR)),
        )
        super().__init__(source, **settings)


class TorchvisionDataModule(ClassificationDataModule):
    """A data set of torchvision.datasets, by name. See `TorchvisionSource`."""

    def __init__(
        self,
        root: str | Path = "data/torchvision",
        *,
        name: str,
        download: bool = False,
        options: Mapping[str, Any] | None = None,
        **settings: Unpack[DataSettings],
    ) -> None:
        cache_dir = Path(settings.get("cache_dir", CACHE_DIR))
        source = TorchvisionSource(Path(root), name=name, download=download, options=options, cache_dir=cache_dir)
        super().__init__(source, **settings)
