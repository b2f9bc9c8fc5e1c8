"""Torch stages to ONNX: trace, stitch, split, save, lint, verify. Knows no model."""
