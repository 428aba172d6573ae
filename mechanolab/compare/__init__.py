"""Runs to a table, plots and one self-contained HTML report."""
