"""Decisions about kernels: how each is tiled, vectorised and bound to threads, per target."""
