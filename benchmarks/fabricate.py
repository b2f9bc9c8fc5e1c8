"""Fabricate a checkpoint and print its folder: the published size, or with parts of it changed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from axcore import Registry
from axcore.checkpoint import fabricate
from axcore.pipeline.job import fabricated_folder


def in_newer_layout(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the language model's part the name that transformers itself writes."""
    return {"text_config" if name == "llm_config" else name: config[name] for name in config}


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--size", choices=("tiny", "full"), default="full")
parser.add_argument("--changes", type=json.loads, help="nested overrides of the config, as JSON")
parser.add_argument("--native", help="architecture: the layout of newer transformers")
parser.add_argument("--folder", type=Path, help="default: where `axcore convert --weights` looks")
arguments = parser.parse_args()

card = Registry().find(arguments.model).card
published = card.published
folder = arguments.folder or fabricated_folder(card, arguments.size)
if arguments.native:
    config = {**in_newer_layout(published.config), "architectures": [arguments.native]}
    published = replace(published, config=config, tiny=in_newer_layout(published.tiny))
if arguments.changes:
    # What makes a checkpoint tiny are overrides of the published config, so these take their place.
    # Tokens are left out: their ids may lie beyond a smaller vocabulary.
    published = replace(published, tiny=arguments.changes, tokens=None)
    arguments.size = "tiny"
fabricate(replace(card, published=published), arguments.size, folder)
print(json.dumps(str(folder)))
