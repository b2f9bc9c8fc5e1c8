"""Names in exported graphs, shared by the code that writes them and the code that reads them."""

STAGES_KEY = "axcore.stages"
"""Metadata property with the stage names as a JSON list; a node's name starts with its stage's."""
