"""Embedding files and build arguments."""
