"""Many-VLM: two picture towers and an ear before one decoder; one tower has side outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from axcore import (
    Calibration,
    Component,
    Job,
    Layout,
    ModelCard,
    Port,
    Profile,
    Prompt,
    Published,
    Shape,
    affine_tensors,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

WIDTH, TEXT, SIDE, ROWS, HEARD = 16, 24, 32, 4, 5
MEL = (1, HEARD, 8)
CONFIG: Mapping[str, Any] = {
    "architectures": ["ManyVLM"],
    "model_type": "manyvlm",
    "hidden_size": TEXT,
    "num_hidden_layers": 3,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}
PIXELS = Calibration("Image", mean=(127.5,) * 3, std=(127.5,) * 3, tensor_format="RGB", size=4)


@hookimpl
def model_cards() -> list[ModelCard]:
    return [
        ModelCard(
            id="many-vlm",
            repo="somebody/Many-VLM",
            architectures=("ManyVLM",),
            profiles={"image": Profile(SIDE, SIDE, prefill_len=128, kv_cache_len=511)},
            layout=Layout(tensors, {"": ("",)}, text_prefixes=("model.",)),
            published=Published(CONFIG, tiny={}),
        )
    ]


@hookimpl
def export_vision(job: Job) -> list[Component]:
    from . import vision

    pixels, rows = (Port("pixel_values", (1, 3, SIDE, SIDE)),), (1, ROWS, TEXT)
    other = (Port("small_pixels", (1, 3, SIDE, SIDE)),)
    return [
        Component(
            "eye", "Many_eye", vision.eye(), pixels,
            (Port("eye_rows", rows), Port("deep_0", rows, layer=0), Port("deep_1", rows, layer=2)),
            preprocess=lambda images: [{"pixel_values": seen(images[0])}],
            calibration=PIXELS,
        ),
        Component(
            "second", "Many_second", vision.second(), other, (Port("second_rows", rows),),
            preprocess=lambda images: [{"small_pixels": seen(images[0])}],
            calibration=PIXELS,
        ),
        Component(
            "ear", "Many_ear", vision.ear(), (Port("mel", MEL),),
            (Port("heard", (1, HEARD, WIDTH)), Port("loud", (1, HEARD, WIDTH))),
            preprocess=lambda arrays: [{"mel": array[None] / 2} for array in arrays],
            media="array", after="",
        ),
        Component(
            "bridge", "Many_bridge", vision.bridge(),
            (Port("heard", (1, HEARD, WIDTH)), Port("loud", (1, HEARD, WIDTH))),
            (Port("ear_rows", (1, HEARD, TEXT)),),
            calibration=Calibration("NumpyObject"),
        ),
    ]  # fmt: skip


def seen(image: Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.resize((SIDE, SIDE)))


@hookimpl
def prepare_prompt(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Every picture through both towers."""
    parts = [part for message in messages for part in message["content"]]
    images = [part["image"] for part in parts if part["type"] == "image"]
    count = len(images) * ROWS
    return Prompt(
        np.zeros(2 * count + 3, np.int64),
        np.arange(2 * count + 3)[None],
        {"eye": np.arange(count), "second": np.arange(count) + count, "bridge": np.empty(0, int)},
        {
            "eye": [{"pixel_values": seen(image)} for image in images],
            "second": [{"small_pixels": seen(image)} for image in images],
        },
    )


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for tower in ("eye", "second"):
        shapes |= affine_tensors(f"{tower}.patch", WIDTH, 3 * 16 * 16)
        shapes |= affine_tensors(f"{tower}.out", TEXT, WIDTH)
    for block in range(3):
        shapes |= affine_tensors(f"eye.blocks.{block}", WIDTH, WIDTH)
    for side in range(2):
        shapes |= affine_tensors(f"eye.side.{side}", TEXT, WIDTH)
    shapes |= affine_tensors("ear.in", WIDTH, MEL[2])
    shapes |= affine_tensors("ear.out", WIDTH, WIDTH)
    shapes |= affine_tensors("bridge.in", WIDTH, WIDTH)
    shapes |= affine_tensors("bridge.out", TEXT, WIDTH)
    return {**shapes, "model.embed_tokens.weight": (config["vocab_size"], TEXT)}
