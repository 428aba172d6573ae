"""Sweep file to search space, and the engines that walk it."""
