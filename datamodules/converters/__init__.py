"""Converters, one file per paper: the original archives in, samples out."""
