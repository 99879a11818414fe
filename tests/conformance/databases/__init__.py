"""Conformance against PyTorch's own test databases: `module_db` and `op_db`.

`python -m tests.conformance.databases --help`; the fixed part that CI runs is `test_databases.py`.
"""
