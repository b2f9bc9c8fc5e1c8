"""Toolchains against stand-ins."""
