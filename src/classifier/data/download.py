"""Fetch an archive once: checked, resumed after a break, unpacked without leaving its folder."""

import hashlib
import http.client
import logging
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from classifier.errors import UserError

log = logging.getLogger(__name__)


CHUNK = 1 << 20  # bytes


def download(url: str, target: Path, sha256: str) -> None:
    """Fetch `url` to `target`, continuing a broken attempt; `target` appears only once its checksum is right.

    Raises:
        UserError: The server does not answer, or what came is not the file that was promised.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _fetch(url, part)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {url} ({error}): run the same command again to continue, or put the file at {target}"
        ) from error
    found = _sha256(part)
    if found != sha256:
        part.unlink()
        raise UserError(
            f"{url} has the SHA-256 {found} instead of {sha256}; removed it: try again, or another data.url="
        )
    part.rename(target)


def _fetch(url: str, part: Path) -> None:
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if offset and error.code == 416:  # nothing left to send: the file was complete
            return
        raise
    with response:
        resumed = response.status == 206
        remaining = response.headers.get("Content-Length")
        done = offset if resumed else 0
        total = done + int(remaining) if remaining is not None else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress, part.open("ab" if resumed else "wb") as file:
            task = progress.add_task(url.rsplit("/", 1)[-1], total=total, completed=done)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
        if total is not None and part.stat().st_size < total:
            raise OSError(f"the connection broke after {part.stat().st_size} of {total} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(archive: Path, root: Path, member: str) -> None:
    """Unpack a tar of which `member` is the top-level entry, so that root/member appears only when it is whole.

    Raises:
        UserError: The archive is damaged, lacks `member`, or wants to write outside its folder (tarfile's data filter).
    """
    if (root / member).exists():
        return
    scratch = root / f".{member}.unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    log.info("unpacking %s", archive)
    try:
        with tarfile.open(archive) as tar:
            # the data filter strips a leading slash and goes on
            if absolute := [name for name in tar.getnames() if name.startswith("/")]:
                raise UserError(f"cannot unpack {archive} ({absolute[0]} is an absolute path): remove it and run again")
            tar.extractall(scratch, filter="data")
        if not (scratch / member).exists():
            raise UserError(f"{archive} holds no {member}: is it the right archive?")
        (scratch / member).rename(root / member)
    except tarfile.TarError as error:
        raise UserError(f"cannot unpack {archive} ({error}): remove it and run again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
