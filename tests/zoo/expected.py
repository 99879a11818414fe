"""Architectures that are refused, and what the refusal says (a regular expression). Strict both ways: one that is
refused and not listed fails, and so does one that is listed and works."""

REFUSED: dict[str, str] = {}
