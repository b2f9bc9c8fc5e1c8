"""Quantise the language model of a checkpoint; the vision side is left unchanged."""
