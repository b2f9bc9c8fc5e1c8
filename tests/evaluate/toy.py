"""A tiny CLIP in open_clip's layout, and open_clip's own arithmetic written out."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

SPACE, PATCH, CONTEXT = 24, 8, 12
MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("o", "g</w>"), ("d", "og</w>")]
WORDS = 512 + len(MERGES) + 2
END = WORDS - 1
State = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What a CLIP is made of; the defaults are those of most: heads of 64 features."""

    width: int = 128
    heads: int = 2
    text_width: int = 64
    text_heads: int = 1
    grid: int = 3
    act: str = "gelu"


PLAIN = Shape()


def weights(shape: Shape = PLAIN, seed: int = 0) -> State:
    """Random weights under open_clip's names, large enough for everything to matter."""
    random = torch.Generator().manual_seed(seed)

    def some(*size: int) -> Tensor:
        return torch.randn(size, generator=random) * 0.15

    state = {
        "positional_embedding": some(CONTEXT, shape.text_width),
        "text_projection": some(shape.text_width, SPACE),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": some(shape.width),
        "visual.positional_embedding": some(shape.grid**2 + 1, shape.width),
        "visual.proj": some(shape.width, SPACE),
        "visual.conv1.weight": some(shape.width, 3, PATCH, PATCH),
        "token_embedding.weight": some(WORDS, shape.text_width),
    }
    norms = {"visual.ln_pre": shape.width, "visual.ln_post": shape.width}
    norms["ln_final"] = shape.text_width
    for tower, width in (("visual.transformer", shape.width), ("transformer", shape.text_width)):
        for block in (f"{tower}.resblocks.{i}" for i in range(2)):
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            for name, outputs, inputs in (
                ("attn.out_proj.", width, width),
                ("attn.in_proj_", 3 * width, width),
                ("mlp.c_fc.", 48, width),
                ("mlp.c_proj.", width, 48),
            ):
                state[f"{block}.{name}weight"] = some(outputs, inputs)
                state[f"{block}.{name}bias"] = some(outputs)
    for name, width in norms.items():
        state |= {f"{name}.weight": 1 + some(width), f"{name}.bias": some(width)}
    return state


def pixels(image: Image, side: int) -> Tensor:
    """open_clip's ``image_transform`` where it does not train, by torchvision's arithmetic."""
    width, height = image.size
    short, long = sorted((width, height))
    longer = int(side * long / short)
    new_width, new_height = (side, longer) if width <= height else (longer, side)
    resized = image.resize((new_width, new_height), Resampling.BICUBIC)
    top = int(round((new_height - side) / 2.0))  # noqa: RUF046 - as torchvision writes it
    left = int(round((new_width - side) / 2.0))  # noqa: RUF046
    values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    middle = values[:, top : top + side, left : left + side]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    return (middle - mean) / torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def image_features(state: State, pixels: Tensor, shape: Shape = PLAIN) -> Tensor:
    """open_clip's ``VisionTransformer.forward``, normalised."""
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = _blocks(state, "visual.transformer", _norm(state, "visual.ln_pre", x), shape.heads, shape)
    return F.normalize(_norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"], dim=-1)


def text_features(state: State, ids: Tensor, shape: Shape = PLAIN) -> Tensor:
    """open_clip's ``CLIP.encode_text``, normalised; `ids` are ``[n, CONTEXT]``, padded with 0."""
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    x = _blocks(state, "transformer", x, shape.text_heads, shape, mask)
    x = _norm(state, "ln_final", x)[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(x @ state["text_projection"], dim=-1)


def _blocks(
    state: State, tower: str, x: Tensor, heads: int, shape: Shape, mask: Tensor | None = None
) -> Tensor:
    for block in (f"{tower}.resblocks.{i}." for i in range(2)):
        s = {key.removeprefix(block): v for key, v in state.items() if key.startswith(block)}
        y = _norm(s, "ln_1", x).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            y, y, y, y.shape[-1], heads, s["attn.in_proj_weight"], s["attn.in_proj_bias"],
            None, None, False, 0.0, s["attn.out_proj.weight"], s["attn.out_proj.bias"],
            training=False, need_weights=False, attn_mask=mask,
        )  # fmt: skip
        x = x + attended.transpose(0, 1)
        y = F.linear(_norm(s, "ln_2", x), s["mlp.c_fc.weight"], s["mlp.c_fc.bias"])
        y = F.gelu(y) if shape.act == "gelu" else y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, s["mlp.c_proj.weight"], s["mlp.c_proj.bias"])
    return x


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def write(folder: Path) -> Path:
    """Write weights and vocabulary into an empty folder or a new one."""
    folder.mkdir(exist_ok=True)
    torch.save(weights(), folder / "open_clip_pytorch_model.bin")
    write_merges(folder)
    return folder


# Text --------------------------------------------------------------------------------------------


def write_merges(folder: Path) -> Path:
    """Write the vocabulary as open_clip ships it."""
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    lines = ["version", *map(" ".join, MERGES), ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return path


def ids(texts: list[str]) -> Tensor:
    """open_clip's ``tokenize`` for printable ASCII: cut, the end token kept, padded with 0."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        tokens = [WORDS - 2, *_bpe(text), END][:CONTEXT]
        tokens[-1] = END
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def _bpe(text: str) -> list[int]:
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 512))][:256]
    known = [*letters, *(f"{c}</w>" for c in letters), *map("".join, MERGES)]
    found = []
    for word in re.findall(r"'(?:s|t|re|ve|m|ll|d)|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for first, second in MERGES:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (first, second):
                    parts[i : i + 2] = [first + second]
                i += 1
        found += [known.index(part) for part in parts]
    return found
