"""Write a tokenizer as the text file that MNN and Axera's ``axllm`` read.

The file consists of lines, in UTF-8:

- ``430 <type>``: a magic number and the kind of tokenizer: 0 sentencepiece, 1 tiktoken, 2 bert,
  3 huggingface (BPE with merges). Only the last is written here.
- the number of special, stop and prefix tokens, then on one line their ids in this order.
- for kind 3 ``<tokens> <merges> <splitter>``, then a token a line in the order of their ids, then a
  merge a line, its halves separated by a space, in the order of their rank. Tokens are spelled as
  in ``tokenizer.json``. A token that contains a line break is written as ``b64:`` and its base64,
  as are both halves of a merge with such a token. An id without a token gets an empty line.

The splitter says how text is cut into words before merging: 0 by ASCII classes, or by Unicode
letters: 1 with combining marks, 2 without, 3 with digits in groups of three, 4 by case as well.
Older readers treat every splitter as 0 and do not support base64.

Source: the public readers and converters of MNN (``transformers/llm/engine``) and tokenizer.axera
(``src/tokenizer``, ``tests/convert_tokenizer.py``).
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenizers import Tokenizer

MAGIC, BPE = 430, 3
_ENCODED = "b64:"
_BREAKS = ("\n", "\r")


def mnn_text(tokenizer: Tokenizer, stop_ids: Sequence[int]) -> str:
    """Return the content of the text file.

    Args:
        tokenizer: A BPE; its added tokens become special tokens, which readers match first.

    Raises:
        UnsupportedModel: The tokenizer is not a BPE.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise UnsupportedModel(
            f"the tokenizer is of type {model['type']}; axllm packages need a BPE tokenizer",
            hint="package with --runtime python",
        )
    special = [token["id"] for token in content["added_tokens"]]
    vocabulary = _by_id(tokenizer.get_vocab())
    splitter = _splitter(content["pre_tokenizer"])
    lines = [
        f"{MAGIC} {BPE}",
        f"{len(special)} {len(stop_ids)} 0",
        " ".join(map(str, [*special, *stop_ids])),
        f"{len(vocabulary)} {len(model['merges'])} {splitter}",
        *(_encoded(token) if _breaks(token) else token for token in vocabulary),
        *map(_merge, model["merges"]),
    ]
    return "\n".join(lines) + "\n"


def _by_id(vocabulary: Mapping[str, int]) -> list[str]:
    tokens = [""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
    return tokens


def _merge(halves: Sequence[str]) -> str:
    whole = all(not _breaks(half) and " " not in half for half in halves)
    return " ".join(halves if whole else map(_encoded, halves))


def _breaks(token: str) -> bool:
    return token.startswith(_ENCODED) or any(mark in token for mark in _BREAKS)


def _encoded(token: str) -> str:
    return _ENCODED + base64.b64encode(token.encode()).decode()


def _splitter(pre_tokenizer: Mapping[str, Any] | None) -> int:
    patterns = "\n".join(_patterns([pre_tokenizer or {}]))
    if not patterns:
        return 0
    if r"\p{Lu}" in patterns:
        return 4
    if r"\p{L}\p{M}" in patterns:
        return 1
    return 3 if r"\p{N}{1,3}" in patterns else 2


def _patterns(steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the regular expressions that a pre-tokenizer splits by."""
    for step in steps:
        if step.get("type") == "Split":
            yield step["pattern"].get("Regex", "")
        yield from _patterns(step.get("pretokenizers", ()))
