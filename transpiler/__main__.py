"""`python -m transpiler` is the command `transpile`."""

from transpiler.cli import main

if __name__ == "__main__":
    main(prog_name="python -m transpiler")
