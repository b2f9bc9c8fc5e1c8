"""Quantising the language model of a checkpoint; the vision side stays as it is."""
