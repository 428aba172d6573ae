"""Figures, one file per paper: arrays in, matplotlib Figure out."""
