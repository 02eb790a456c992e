"""Laws of output files: what is tried leaves nothing behind, and what is there is replaced as a whole or stays."""

import os
import stat
from pathlib import Path

import pytest

from lpnet import folders
from lpnet.errors import InputError


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Name -> inode, type and content."""
    found = {}
    for path in folder.iterdir():
        of = path.lstat()
        found[path.name] = of.st_ino, stat.S_IFMT(of.st_mode), path.read_bytes() if path.is_file() else b""
    return found


def device(path: Path) -> None:
    """A node of its own of the device that /dev/null is."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:  # also where a machine lets nobody make one
        pytest.skip("devices can be made by root only")


@pytest.mark.parametrize("there", ["nothing", "an empty file", "a file", "a link", "a link into nothing", "a part"])
def test_trying_changes_nothing(there: str, tmp_path: Path) -> None:
    path, other = tmp_path / "out", tmp_path / "other"
    if there in ("an empty file", "a file"):
        path.write_text("x" * (there == "a file"))
    if there.startswith("a link"):
        path.symlink_to(other)
    if there == "a link":
        other.write_text("")
    if there == "a part":
        (tmp_path / "out.part").touch()
    before = state(tmp_path)
    folders.check_file(path, "--out")
    assert state(tmp_path) == before


@pytest.mark.parametrize("there", ["a pipe", "a device", "a link to a device", "a folder", "a link to itself"])
def test_what_is_no_regular_file_is_refused_and_stays(there: str, tmp_path: Path) -> None:
    path, other = tmp_path / "out", tmp_path / "other"
    if there == "a pipe":
        os.mkfifo(path)
    elif there == "a folder":
        path.mkdir()
    elif there == "a device":
        device(path)
    else:
        path.symlink_to(path if there == "a link to itself" else other)
    if there == "a link to a device":
        device(other)
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"^--out: .* given \(.*\), a file that can be written allowed$"):
        folders.check_file(path, "--out")
    assert state(tmp_path) == before


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "out").symlink_to("folder/file")
    for text in ("new", "newer"):
        folders.write_text(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "folder" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]
