"""Probes: what a frozen model has learned of the sub-structure that the curriculum leaks."""
