"""One thread per process for PyTorch: the suite runs on two processes, and OpenMP threads that wait for a core spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
