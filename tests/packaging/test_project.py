"""`[[tool.transpile.models]]` of a project's pyproject.toml: what is read, and every way of getting it wrong."""

from pathlib import Path

import pytest

from transpiler.errors import TranspileErrors
from transpiler.project import ModelSpec, read_project

HEAD = '[project]\nname = "shop"\nversion = "1"\ndependencies = ["numpy>=1.26"]\n'
MODEL = '[[tool.transpile.models]]\nname = "shop.net"\nsource = "net.py"\n'


def project(folder: Path, text: str, head: str = HEAD) -> Path:
    (folder / "net.py").write_text("")
    (folder / "pyproject.toml").write_text(head + text)
    return folder


def test_a_project_without_models(tmp_path: Path) -> None:
    assert read_project(tmp_path).models == ()
    assert read_project(project(tmp_path, "[tool.other]\nx = 1\n")).models == ()
    assert read_project(project(tmp_path, "[tool.transpile]\n")).models == ()


def test_every_key(tmp_path: Path) -> None:
    for name in ("w.safetensors", "tuning.json", "a.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "net.py").write_text("")
    text = MODEL + (
        'entry = "Net"\ninit = { width = 8, name = "a b", deep = [1, 2.5], on = true }\n'
        'inputs = ["x=1x8:float32", "ids=1x4:int64[0..9]"]\nweights = "w.safetensors"\ndynamic = ["x.0=batch:1..64"]\n'
        'targets = ["cpu"]\nisa = ["avx2", "baseline"]\ntaps = "body.*"\ntune = "fast"\ntuning-record = "tuning.json"\n'
        'version = "1.2"\nbundle-weights = "none"\ntriple = "x86_64-linux-gnu"\nglibc = "2.28"\n'
        'exact = true\nprecision = "bfloat16"\nrng = true\ntest = false\ndepends = ["*.txt"]\n'
    )
    (model,) = read_project(project(tmp_path, text)).models
    assert model == ModelSpec(
        name="shop.net",
        source="net.py",
        entry="Net",
        init={"width": 8, "name": "a b", "deep": [1, 2.5], "on": True},
        inputs=("x=1x8:float32", "ids=1x4:int64[0..9]"),
        weights="w.safetensors",
        dynamic=("x.0=batch:1..64",),
        isa=("avx2", "baseline"),
        version="1.2",
        bundle_weights="none",
        triple="x86_64-linux-gnu",
        glibc="2.28",
        taps="body.*",
        tune="fast",
        tuning_record="tuning.json",
        exact=True,
        precision="bfloat16",
        rng=True,
        test=False,
        depends=("*.txt",),
    )
    assert (model.package, model.parents) == ("net", ("shop",))
    # fmt: off
    assert model.arguments(Path("/p"), Path("/out")) == [
        "--name", "net", "--package-version", "1.2", "--out", "/out", "--tune", "fast",
        "--entry", "Net", "--taps", "body.*",
        "--triple", "x86_64-linux-gnu", "--glibc", "2.28",
        "--weights", "/p/w.safetensors", "--tuning-record", "/p/tuning.json", "--target", "cpu",
        "--input", "x=1x8:float32", "--input", "ids=1x4:int64[0..9]", "--dynamic", "x.0=batch:1..64",
        "--isa", "avx2", "--isa", "baseline", "--init", "width=8", "--init", "name='a b'", "--init", "deep=[1, 2.5]",
        "--init", "on=True", "--precision", "bfloat16", "--exact", "--rng", "--no-test", "--", "/p/net.py",
    ]
    # fmt: on


def test_nothing_is_tuned_by_default(tmp_path: Path) -> None:
    (model,) = read_project(project(tmp_path, MODEL)).models
    assert model == ModelSpec("shop.net", "net.py")
    assert (model.tune, model.test) == ("none", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sauce = "x"', "models[0].sauce: there is no such key; did you mean 'source'? Known: name, source, entry,"),
        ("zzz = 1", "models[0].zzz: unknown; known: name, source, entry,"),
        ("inputs = 3", "models[0].inputs: expected a list of texts, got a number"),
        ('inputs = ["1xx"]', "models[0].inputs: Cannot read --input '1xx'"),
        ('dynamic = ["x"]', "models[0].dynamic: Cannot read --dynamic 'x': expected NAME.DIM=SYMBOL"),
        ('targets = ["cuda9"]', "models[0].targets: unknown target 'cuda9'; known: cpu, cuda, vulkan"),
        ("targets = []", "models[0].targets: expected at least one target"),
        ('tune = "slow"', "models[0].tune: expected none, fast or full, got 'slow'"),
        ('test = "no"', "models[0].test: expected true or false, got 'no'"),
        ('weights = "w.pt"', "models[0].weights: there is no file 'w.pt' in"),
        ('weights = "../w.pt"', "models[0].weights: '../w.pt' must be a path inside of the project's folder"),
        ('weights = "/etc/passwd"', "models[0].weights: '/etc/passwd' must be a path inside"),
        ('depends = ["*.bin"]', "models[0].depends: no file in"),
        ('depends = "*.bin"', "models[0].depends: expected a list of paths, got a text"),
        ("init = [1]", "models[0].init: expected a table, got a list"),
        ("init = { when = 2020-01-01 }", "models[0].init: when: expected numbers, texts, bools and lists of them"),
        ('entry = "a\\nb"', "models[0].entry: expected a line of text"),
        ('isa = ["foo"]', "models[0].isa: Unknown ISA 'foo'; known: "),
        ('isa = ["neon"]', "models[0].isa: neon is not an instruction set of x86_64-unknown-linux-gnu"),
        ('triple = "riscv64-unknown-linux-gnu"', "models[0].triple: "),
        ('version = "1-2"', "models[0].version: '1-2' is no version: expected one such as 1.2"),
        ("bundle-weights = 1", "models[0].bundle-weights: expected embed, separate or none, got 1"),
        ('glibc = "abc"', "models[0].glibc: --glibc 'abc': expected a version such as 2.28"),
        ('weights = "link.safetensors"', "models[0].weights: 'link.safetensors' is a link to a file outside"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "link.safetensors").symlink_to(__file__)
    with pytest.raises(TranspileErrors) as caught:
        read_project(project(tmp_path, f"{MODEL}{text}\n"))
    assert [problem.code for problem in caught.value.problems] == ["bad-project"]
    assert str(caught.value).startswith("pyproject.toml: tool.transpile.")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "shop.net"', "models[0].source: is missing"),
        ('source = "net.py"', "models[0].name: is missing"),
        ('name = "a"\nsource = "gone.py"', "models[0].source: there is no file 'gone.py'"),
        ('name = "a"\nsource = "pyproject.toml"', "models[0].source: 'pyproject.toml' is no model"),
        ('name = "../evil"\nsource = "net.py"', "models[0].name: '' cannot be the name of a Python package"),
        ('name = "shop.class"\nsource = "net.py"', "models[0].name: 'class' cannot be the name"),
        (
            'name = "shop"\nsource = "net.py"\n[[tool.transpile.models]]\nname = "shop.net"\nsource = "net.py"',
            "models[1].name: 'shop.net' would lie inside of the package that is generated for 'shop'",
        ),
    ],
)
def test_name_and_source(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TranspileErrors) as caught:
        read_project(project(tmp_path, f"[[tool.transpile.models]]\n{text}\n"))
    assert message in str(caught.value)


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = f'{MODEL}tune = 1\n{MODEL}taps = 2\n{MODEL}{MODEL}\n[tool.transpile]\nmodel = "x"\n'
    with pytest.raises(TranspileErrors) as caught:
        read_project(project(tmp_path, text, HEAD.replace("numpy", "numba")))
    places = [problem.message.split(": ")[1] for problem in caught.value.problems]
    assert places == [
        "tool.transpile.model",
        "tool.transpile.models[0].tune",
        "tool.transpile.models[1].taps",
        "tool.transpile.models[3].name",
        "project.dependencies",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.transpile.models]\nname = 1\n", "tool.transpile.models: expected tables, got a table"),
        ("[tool]\ntranspile = 3\n", "tool.transpile: expected a table, got a number"),
        ("[tool", "is not TOML"),
    ],
)
def test_a_table_of_another_shape(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TranspileErrors, match=r"^pyproject\.toml") as caught:
        read_project(project(tmp_path, text))
    assert message in str(caught.value)


def test_dependencies_that_a_build_backend_computes_are_trusted(tmp_path: Path) -> None:
    head = '[project]\nname = "shop"\nversion = "1"\ndynamic = ["dependencies"]\n'
    assert len(read_project(project(tmp_path, MODEL, head)).models) == 1
