"""Simulators, one file per paper: random generator and parameters in, samples out."""
