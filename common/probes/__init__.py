"""Probes: what a frozen model has learned of the sub-structure that makes up the curriculum."""
