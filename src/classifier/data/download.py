"""Fetch an archive once: checked, and unpacked without leaving its folder."""

import hashlib
import http.client
import logging
import shutil
import tarfile
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from classifier.errors import UserError
from classifier.files import replacing

log = logging.getLogger(__name__)


def download(url: str, target: Path, sha256: str) -> None:
    """Fetch `url` to `target`, which appears only once its checksum is right.

    Raises:
        UserError: The server does not answer, or what came is not the file that was promised.
    """
    if target.exists():
        return
    try:
        with replacing(target) as scratch:
            with urllib.request.urlopen(url, timeout=60) as response, scratch.open("wb") as file:
                total = int(response.headers.get("Content-Length") or 0)
                with wrap_file(response, total, description=target.name, console=Console(stderr=True)) as body:
                    shutil.copyfileobj(body, file, 1 << 20)
            with scratch.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if scratch.stat().st_size < total:
                raise OSError(f"the connection broke after {scratch.stat().st_size} of {total} bytes")
            if found != sha256:
                raise UserError(f"{url} has the SHA-256 {found}, not {sha256}: try again, or another data.url=...")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url} ({error}): try again, or put the file at {target}") from error


def extract(archive: Path, root: Path, member: str) -> None:
    """Unpack a tar of which `member` is the top-level entry, so that root/member appears only when it is whole.

    Raises:
        UserError: The archive is damaged, lacks `member`, or wants to write outside its folder (tarfile's data
            filter, which takes absolute paths as relative ones).
    """
    if (root / member).exists():
        return
    scratch = root / f".{member}.unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    log.info("unpacking %s", archive)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (scratch / member).rename(root / member)
    except (tarfile.TarError, FileNotFoundError) as error:
        raise UserError(f"cannot unpack {archive} ({error}): remove it and run again") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
