"""What `python -m tests.cuda.on_gpu` does: cases, their preparation without a GPU, checks, times, the report."""
