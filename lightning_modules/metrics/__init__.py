"""Metrics: pure functions, with a torchmetrics shell where there is state."""
