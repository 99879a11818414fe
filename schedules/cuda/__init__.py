"""Schedules for NVIDIA's GPUs: what takes tensor cores, asynchronous copies or warps for granted."""
