"""The C side of every model in tests/models under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and
its kernels with arenas between pages that cannot be touched."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.models.support import FILES
from tests.safety.instrumented import HERE, build, run


def sanitizers_work(folder: Path) -> bool:
    """Whether gcc has the sanitizers' libraries."""
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    command = ["gcc", "-fsanitize=address,undefined", "probe.c", "-o", "probe"]
    return bool(shutil.which("gcc")) and subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sanitizers_work(tmp_path), "gcc with libasan, libubsan and libtsan is needed (they come with Debian's gcc)"
    packages = build(name, tmp_path, monkeypatch)
    for kind in ("address", "fenced"):
        # Every recorded case, wrong arguments, taps, new weights, several threads at once.
        done = run(kind, ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests"], packages[kind])
        assert done.returncode == 0, f"{kind}:\n{done.stdout}"
        assert "ERROR: AddressSanitizer" not in done.stdout
    for kind in packages:
        done = run(kind, [HERE / "exercise.py", packages[kind], name], tmp_path)
        assert done.returncode == 0, f"{kind}:\n{done.stdout}"
        assert done.stdout.endswith("done\n")


PLANTED = """
#include <pthread.h>
#include <stdlib.h>
static int count;
static void *bump(void *nothing) { ++count; return nothing; }
int race(void) {
  pthread_t threads[2];
  for (int i = 0; i < 2; ++i) pthread_create(&threads[i], NULL, bump, NULL);
  for (int i = 0; i < 2; ++i) pthread_join(threads[i], NULL);
  return count;
}
int overrun(void) { char *memory = aligned_alloc(64, 64); int last = memory[64]; free(memory); return last; }
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fault"), [("address", "overrun"), ("thread", "race"), ("fenced", "overrun")])
def test_a_planted_fault_is_found(kind: str, fault: str, tmp_path: Path) -> None:
    """What the other tests rely on: such a library fails in the same process."""
    from tests.safety.instrumented import BUILDS

    (tmp_path / "planted.c").write_text(PLANTED)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", *BUILDS[kind], "planted.c", "-o", "planted.so"], cwd=tmp_path, check=True
    )
    done = run(kind, ["-c", f"import ctypes; ctypes.CDLL('./planted.so').{fault}()"], tmp_path)
    assert done.returncode != 0, done.stdout
