"""Architectures, one a file; defaults are the papers' numbers."""
