"""The command: composes an experiment, launches it, logs, sweeps, compares."""
