"""Names in exported graphs, shared by those who write them and those who read them."""

STAGES_KEY = "axcore.stages"
"""Model metadata: the names of the stages as a JSON list; they prefix the names of their nodes."""
