"""Score fabricated answers with a fabricated CLIP, against its bare forward passes.

`fabricate` writes random weights in open_clip's layout, a vocabulary, images and two prediction
files; `score` prints the seconds of loading, of scoring, and of the forward passes alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from axcore.calibration import embedded_images
from axcore.evaluate import Clip, clip_scores, images_by_name, match, read_predictions
from axcore.evaluate.clip import IMAGES, TEXTS
from axcore.evaluate.clip_files import BPE, MERGES, WEIGHTS

SIDES = ("a.json", "b.json")
# Width, layers and inner width of vision and text, width of the space: open_clip's ViT-H-14.
SIZES = {
    "full": ((1280, 32, 5120), (1024, 24, 4096), 1024),
    "tiny": ((128, 2, 256), (64, 2, 128), 32),
}
PATCH_PX, PATCHES, CONTEXT, WORDS = 14, 256, 77, 49408


def weights(size: str) -> dict[str, torch.Tensor]:
    """Return random weights under open_clip's names."""
    vision, text, space = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (CONTEXT, text[0]),
        "text_projection": (text[0], space),
        "logit_scale": (),
        "visual.class_embedding": (vision[0],),
        "visual.positional_embedding": (PATCHES + 1, vision[0]),
        "visual.proj": (vision[0], space),
        "visual.conv1.weight": (vision[0], 3, PATCH_PX, PATCH_PX),
        "token_embedding.weight": (WORDS, text[0]),
    }
    for tower, (width, layers, inner) in (("visual.transformer", vision), ("transformer", text)):
        for block in (f"{tower}.resblocks.{i}" for i in range(layers)):
            shapes |= pair(f"{block}.ln_1.", width) | pair(f"{block}.ln_2.", width)
            shapes |= pair(f"{block}.attn.in_proj_", 3 * width, width)
            shapes |= pair(f"{block}.attn.out_proj.", width, width)
            shapes |= pair(f"{block}.mlp.c_fc.", inner, width)
            shapes |= pair(f"{block}.mlp.c_proj.", width, inner)
    for norm in ("visual.ln_pre.", "visual.ln_post."):
        shapes |= pair(norm, vision[0])
    shapes |= pair("ln_final.", text[0])
    return {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}


def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a weight and its bias."""
    return {f"{name}weight": shape, f"{name}bias": shape[:1]}


def fabricate(folder: Path, size: str, count: int) -> None:
    """Write everything that scoring reads."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(weights(size), folder / WEIGHTS[3])
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    merges = [f"{one} {other}" for one in letters for other in letters]
    merges += [f"{one} {other}</w>" for one in letters for other in letters]
    text = "\n".join(["version", *merges[:MERGES], ""])
    (folder / BPE).write_bytes(gzip.compress(text.encode()))
    photos = embedded_images()
    for i in range(count):  # of the size of COCO's
        with Image.open(photos[i % len(photos)]) as photo:
            photo.convert("RGB").resize((640, 480)).rotate(i).save(folder / f"{i}.jpg", quality=90)
    choose = random.Random(0)
    for side in SIDES:
        answers = {f"{i}.jpg": sentence(choose) for i in range(count)}
        (folder / side).write_text(json.dumps(answers))


def sentence(choose: random.Random) -> str:
    """Return a text of more tokens than the context has."""
    words = ("".join(choose.choices("abcdefghij", k=4)) for _ in range(CONTEXT))
    return " ".join(words)


def score(folder: Path) -> dict[str, float]:
    """Score, and run the same forward passes on inputs made beforehand."""
    started = time.perf_counter()
    clip = Clip.load(folder)
    loaded = time.perf_counter() - started
    answers = match([read_predictions(folder / side) for side in SIDES])
    bare(clip, 1, 1)  # the first pass reads the mapped weights from disk
    started = time.perf_counter()
    clip_scores(clip, answers, images_by_name(folder, answers))
    scored = time.perf_counter() - started
    return {"load": loaded, "score": scored, "bare": bare(clip, len(answers), 2 * len(answers))}


def bare(clip: Clip, images: int, texts: int) -> float:
    """Return the seconds of the model's forward passes alone, in groups as `clip_scores` has."""
    model = clip._model
    shown = np.random.default_rng(0).standard_normal((IMAGES, 3, clip.side_px, clip.side_px))
    pixels = torch.from_numpy(shown.astype(np.float32))
    tokens = torch.full((TEXTS, clip.context), 300)
    tokens[:, -1] = WORDS - 1
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, images, IMAGES):
            model.get_image_features(pixels[: images - start])
        for start in range(0, texts, TEXTS):
            model.get_text_features(tokens[: texts - start])
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("fabricate", "score"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.step == "fabricate":
        fabricate(arguments.folder, arguments.size, arguments.images)
    else:
        print(json.dumps(score(arguments.folder)))
