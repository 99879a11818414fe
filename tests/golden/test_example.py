"""generated/example holds the text files of a small package as `transpile` writes them today.

`python tests/golden/test_example.py` writes them anew.
"""

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "generated" / "example"


def text_files(out: Path) -> dict[str, str]:
    """Relative path -> content, of the files that do not depend on the machine or on the weights."""
    from transpiler import transpile

    package = transpile(ROOT / "tests/models/mlp.py", name="example", out=out, isa="avx2", test=True)
    files = [path for path in package.path.rglob("*") if path.suffix in (".py", ".toml", ".md", ".typed")]
    return {str(path.relative_to(package.path)): path.read_text() for path in sorted(files)}


def test_the_example_is_fresh(tmp_path: Path) -> None:
    from tests.golden.fresh import without_measurements  # not on the path of a script

    shown = {
        str(path.relative_to(EXAMPLE)): path.read_text()
        for path in sorted(EXAMPLE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    today = text_files(tmp_path)
    assert list(shown) == list(today)
    for name, text in today.items():
        assert without_measurements(shown[name]) == without_measurements(text), (
            f"{name}: write it anew with python tests/golden/test_example.py"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        written = text_files(Path(folder))
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    for name, text in written.items():
        (EXAMPLE / name).parent.mkdir(parents=True, exist_ok=True)
        (EXAMPLE / name).write_text(text)
