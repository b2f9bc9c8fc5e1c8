"""Limits on what is read from files that others wrote; docs/security.md lists them.

Each is several times what published models and real results need. What is larger is refused before
it is read, so that a damaged or hostile file costs neither memory nor time.
"""

from __future__ import annotations

KB, MB = 1 << 10, 1 << 20

CONFIG_BYTES = 4 * MB
"""``config.json``, processor and tokenizer settings, chat templates; published: below 0.3 MB."""

TOKENIZER_BYTES = 64 * MB
"""``tokenizer.json``, ``vocab.json``, ``merges.txt``, ``tokenizer.model``; published: 35 MB."""

INDEX_BYTES = 32 * MB
"""The safetensors index: one of 100,000 tensors has 10 MB."""

HEADER_BYTES = 16 * MB
"""The header of one safetensors file: one of 100,000 tensors has 12 MB."""

RECORD_BYTES = 16 * MB
"""Manifests, step records, checksums and other JSON that axcore wrote."""

NESTING = 64
"""Objects and lists inside one another in a JSON file."""

QUANT_TABLE_BYTES = 256 * MB
"""``quant_axmodel.json`` of Pulsar2: some hundred bytes a tensor, 20 MB for a large tower."""
