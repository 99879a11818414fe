"""Real architectures with small configurations and random weights, each compared with PyTorch.

`python -m tests.zoo` runs them all and writes the table of docs/architectures.md.
"""
