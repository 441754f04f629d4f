"""The named arrays of an .npz file or of a folder of .npy files, mapped into memory and never unpickled."""

import hashlib
import io
import logging
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from classifier.errors import UserError, did_you_mean
from classifier.files import made_once

log = logging.getLogger(__name__)

LOCAL_HEADER = 30  # bytes of a zip's member before its name
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class ArrayFile:
    """Where an array lies: small to pickle, however large the array.

    Args:
        path: The file.
        offset: Where in it the numbers begin, in bytes.
        shape: Of the array.
        dtype: Of the array, as numpy's `dtype.str`.
        order: `C`, or `F` for Fortran's.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    order: Literal["C", "F"]

    def open(self) -> np.ndarray:
        """Map it, for reading; nothing is read yet."""
        if 0 in self.shape:  # the system maps no empty range
            return np.zeros(self.shape, self.dtype)
        dtype: np.dtype[np.generic] = np.dtype(self.dtype)
        return np.memmap(self.path, dtype, mode="r", offset=self.offset, shape=self.shape, order=self.order)


class ArrayFiles:
    """The arrays of `root`, by name.

    An uncompressed array is mapped where it is. A compressed one is unpacked to `cache_dir` when it is first asked
    for, by one process of several, and mapped from there.

    Raises:
        UserError: `root` is missing, no zip, cut off, or has no arrays.
    """

    def __init__(self, root: Path, cache_dir: Path) -> None:
        self.root = root
        self.cache_dir = cache_dir
        self.members: dict[str, zipfile.ZipInfo] = {}
        if root.is_dir():
            self.names = sorted(path.stem for path in root.glob("*.npy"))
        else:
            self.members = {info.filename.removesuffix(".npy"): info for info in self._directory()}
            self.names = list(self.members)
        if not self.names:
            raise UserError(f"{root} has no arrays: name an .npz file, or a folder of .npy files, with data.root=...")

    def _directory(self) -> Iterable[zipfile.ZipInfo]:
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist: name an .npz file or a folder of .npy files with data.root=")
        if self.root.suffix == ".npy":
            raise UserError(
                f"{self.root} is one array: use data.root={self.root.parent}, the folder of images and labels"
            )
        try:
            with zipfile.ZipFile(self.root) as archive:
                return [info for info in archive.infolist() if info.filename.endswith(".npy")]
        except (*DAMAGED, OSError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.root} is cut off, damaged or no .npz file ({error}): copy or save it again")

    def find(self, name: str, key: str) -> ArrayFile:
        """The array `name`.

        Args:
            key: The setting that names it, for messages.

        Raises:
            UserError: There is none, it holds Python objects, it is damaged, or there is no room to unpack it.
        """
        if name not in self.names:
            raise UserError(
                f"{self.root} has no array {name!r} but {', '.join(self.names)}: use data.{key}=..., "
                f"{did_you_mean(name, self.names)}"
            )
        if not self.members:
            return self._located(self.root / f"{name}.npy", name)
        member = self.members[name]
        try:
            if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                with self.root.open("rb") as file:
                    file.seek(member.header_offset)
                    header = file.read(LOCAL_HEADER)
                    lengths = struct.unpack_from("<HH", header, 26)
                return self._located(self.root, name, member.header_offset + LOCAL_HEADER + sum(lengths))
            return self._located(self._unpacked(name, member), name)
        except DAMAGED as error:
            raise self._damaged(error) from error

    def _located(self, path: Path, name: str, start: int = 0) -> ArrayFile:
        """The array whose .npy begins at byte `start` of `path`."""
        try:
            with path.open("rb") as file:
                file.seek(start)
                shape, fortran, dtype = _header(file)
                offset, length = file.tell(), file.seek(0, os.SEEK_END)
        except (OSError, ValueError) as error:
            raise UserError(f"the array {name} of {self.root} is damaged ({error}): save it again") from error
        if dtype.hasobject:
            raise UserError(
                f"the array {name} of {self.root} holds Python objects, which are not read, as they may run code: save "
                "numbers or text, as np.stack(list_of_images_of_one_size), or np.array(list_of_names, dtype=str)"
            )
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if length < offset + size:
            raise UserError(f"the array {name} of {self.root} is cut off ({length - offset} of {size} bytes)")
        return ArrayFile(path, offset, shape, dtype.str, "F" if fortran else "C")

    def _unpacked(self, name: str, member: zipfile.ZipInfo) -> Path:
        """The member as a file of its own, made once for this file as it is now."""
        stat = self.root.stat()
        stamp = f"{self.root.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{name}\0{member.CRC}"
        digest = hashlib.sha256(stamp.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        target = self.cache_dir / "arrays" / f"{self.root.stem}-{name.replace('/', '_')}-{digest}.npy"
        made_once(
            target,
            partial(self._unpack, member),
            "data.cache_dir",
            lambda path: path.stat().st_size == member.file_size,
        )
        return target

    def _unpack(self, member: zipfile.ZipInfo, target: Path) -> None:
        free = shutil.disk_usage(target.parent).free
        if member.file_size > free:
            raise OSError(f"{member.file_size / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free")
        log.info("unpacking %s of %s once, into %s", member.filename, self.root, target.parent)
        # zipfile compares the checksum at the end
        with zipfile.ZipFile(self.root) as archive, archive.open(member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)


def kept(array: np.ndarray, name: str, cache_dir: Path) -> ArrayFile:
    """`array` as a file in `cache_dir`, written once for this content by one process of several."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.shape}{array.dtype.str}".encode())
    digest.update(array.data)
    target = cache_dir / "arrays" / f"{name}-{digest.hexdigest()[:16]}.npy"

    def save(scratch: Path) -> None:
        with scratch.open("wb") as file:  # to a name, numpy would add .npy
            np.save(file, array, allow_pickle=False)

    made_once(target, save, "data.cache_dir", partial(_holds, array=array))
    with target.open("rb") as file:
        _header(file)
        return ArrayFile(target, file.tell(), array.shape, array.dtype.str, "C")


def _holds(path: Path, array: np.ndarray) -> bool:
    """Whether the .npy file is as long as one of `array` is."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return path.stat().st_size == header.tell() + array.nbytes


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format {version}, which is for tables with named columns")
