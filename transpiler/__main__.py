"""`python -m transpiler` is the command `transpile`."""

from transpiler.cli import run

if __name__ == "__main__":
    run("python -m transpiler")
