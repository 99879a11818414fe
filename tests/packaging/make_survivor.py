"""Writes a package that the tests load for ever: `python -m tests.packaging.make_survivor`.

There is one per format of the manifest, and it is never written again: a format that changes gets another file.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from tests.packaging.survivor import FOLDER, INPUTS, OUTPUTS, weights


class Survivor(nn.Module):
    """A layer, a rectifier, a layer; and how many rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(INPUTS, 24)
        self.out = nn.Linear(24, OUTPUTS)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.out(torch.relu(self.hidden(x)))
        self.seen += x.shape[0]
        return y, self.seen.clone()


def main() -> None:
    from transpiler import transpile
    from transpiler.manifest import FORMAT

    target = FOLDER / f"format_{FORMAT}.whl"
    if target.exists():
        raise SystemExit(f"{target} is there already: it must be read for ever")
    module = Survivor().eval()
    module.load_state_dict({key: torch.from_numpy(array) for key, array in weights(1).items()})
    with tempfile.TemporaryDirectory() as folder:
        package = transpile(
            module,
            (torch.zeros(2, INPUTS),),
            name="survivor",
            out=folder,
            isa="baseline",
            dynamic=["x.0=rows:1..64"],
            test=True,
        )
        FOLDER.mkdir(exist_ok=True)
        shutil.copyfile(package.wheel(Path(folder)), target)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
