"""Symbolic links and paths that lead out of the folder that a package is written into."""

from pathlib import Path

import pytest

from transpiler.errors import TranspileError
from transpiler.output import write_package

FILES = {"src/net/manifest.json": b'{"format": 1, "name": "net"}', "src/net/model.py": b"new"}


def test_a_link_in_place_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "nowhere"):
        link = tmp_path / f"{target}.link"
        link.symlink_to(tmp_path / target)
        with pytest.raises(TranspileError, match="is a symbolic link; nothing was written"):
            write_package(FILES, link)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "nowhere").exists()


def test_links_in_the_old_package_are_not_followed(tmp_path: Path) -> None:
    """They go with it, and what they point to stays."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    package = write_package(FILES, tmp_path / "net")
    (package / "src/net/model.py").unlink()
    (package / "src/net/model.py").symlink_to(precious / "file")
    (package / "tests").symlink_to(precious)
    write_package({**FILES, "tests/test_net.py": b"new"}, package)
    assert (package / "src/net/model.py").read_bytes() == b"new"
    assert not (package / "tests").is_symlink()
    assert [path.read_text() for path in precious.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a//b", "a\\..\\evil", "./a", ""])
def test_paths_that_leave_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a path inside of a package"):
        write_package({**FILES, name: b"x"}, tmp_path / "out" / "net")
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "out" / "net").exists()
