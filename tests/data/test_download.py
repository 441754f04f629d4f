import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from classifier.data.download import download, extract
from classifier.errors import UserError
from tests.data.server import Server

CONTENT = bytes(range(256)) * 40_000  # ten chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def fetch(server: Server, target: Path, sha256: str = SHA256) -> None:
    server.files.setdefault("file.bin", CONTENT)
    download(f"{server.url}/file.bin", target, sha256)


def test_fetched_and_not_again(tmp_path: Path, server: Server) -> None:
    target = tmp_path / "new" / "file.bin"
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
    fetch(server, target)
    assert len(server.requests) == 1


@pytest.mark.parametrize("cut", [0, 1, 3_000_000])
def test_a_broken_connection_leaves_nothing(tmp_path: Path, server: Server, cut: int) -> None:
    server.cut = cut
    with pytest.raises(UserError, match=f"{server.url}/file.bin"):
        fetch(server, tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []
    server.cut = None
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_removed(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match=rf"{SHA256}, not {'0' * 64}.*data\.url="):
        fetch(server, tmp_path / "file.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_a_user_error(tmp_path: Path, server: Server) -> None:
    target = tmp_path / "gone.bin"
    with pytest.raises(UserError, match=rf"{server.url}/gone.bin .*404.*put the file at {target}"):
        download(f"{server.url}/gone.bin", target, SHA256)
    assert not target.exists()


def archive(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_unpacked_once(tmp_path: Path) -> None:
    tar = archive(tmp_path / "a.tar", ("Images/a/1.jpg", b"one"), ("Images/b/2.jpg", b"two"), ("list.mat", b"three"))
    root = tmp_path / "root"
    root.mkdir()
    extract(tar, root, "Images")
    extract(tar, root, "list.mat")
    assert tree(root) == {"Images/a/1.jpg": b"one", "Images/b/2.jpg": b"two", "list.mat": b"three"}
    (root / "Images/a/1.jpg").write_bytes(b"mine")
    extract(tar, root, "Images")
    assert (root / "Images/a/1.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["parent", "symlink", "through a symlink", "hard link"])
def test_nothing_is_written_outside(tmp_path: Path, kind: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "work" / "root"
    outside.mkdir()
    root.mkdir(parents=True)
    (outside / "file").write_bytes(b"mine")
    members: dict[str, list[tarfile.TarInfo | tuple[str, bytes]]] = {
        "parent": [("../evil", b"x"), ("../../../outside/evil", b"x")],
        "symlink": [link("Images/way", str(outside))],
        "through a symlink": [link("Images/way", "../../../../outside"), ("Images/way/evil", b"x")],
        "hard link": [link("Images/way", "../../../outside/file", tarfile.LNKTYPE)],
    }
    tar = archive(tmp_path / "archives" / "a.tar", ("Images/1.jpg", b"one"), *members[kind])
    before = tree(tmp_path)
    with pytest.raises(UserError, match=str(tar)):
        extract(tar, root, "Images")
    assert tree(tmp_path) == before
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("kind", ["truncated", "not a tar", "empty", "without the member"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, kind: str) -> None:
    tar = archive(tmp_path / "a.tar", *((f"Images/{number}.jpg", bytes(5000)) for number in range(20)))
    if kind == "truncated":
        tar.write_bytes(tar.read_bytes()[:70_300])
    elif kind == "not a tar":
        tar.write_bytes(b"<html>" * 1000)
    elif kind == "empty":
        tar.write_bytes(b"")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(UserError, match=str(tar)):
        extract(tar, root, "Other" if kind == "without the member" else "Images")
    assert list(root.iterdir()) == []
