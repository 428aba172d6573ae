"""Augmentation: geometry that moves labels with pixels, and intensity."""
