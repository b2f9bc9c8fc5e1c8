"""The towers of MiniCPM-V-4 and MiniCPM-V-2 against transformers' SigLIP."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from axcore import Options
from axcore.graph.attention import explicit
from axcore.pipeline.job import open_job
from axcore.progress import Silent
from axcore.request import Request
from axcore.testing import run_stages
from axcore_plugins_minicpmv import export_vision, preprocess, v2, v4

from .conftest import random_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from axcore import Component, Job, ModelCard, Registry

    from .conftest import MakeCheckpoint

    MakeJob = Callable[..., Job]

V4, V2 = v4.card(), v2.card()
CARDS = {card.id: card for card in (V4, V2)}
# A square, and grids whose positions float32 decides: 25 x 4 and 4 x 55 patches.
SIZES = [(448, 448), (70, 140), (350, 56), (56, 770)]
patches = st.integers(1, 9)


@pytest.fixture(scope="module")
def make_job(
    registry: Registry, make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> MakeJob:
    """Return a maker of jobs for ``(card, height, width, **choices)``."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {name: make_checkpoint(card, root / name) for name, card in CARDS.items()}

    def make(card: ModelCard, height: int, width: int, **choices: str) -> Job:
        options = Options(height=height, width=width, choices=choices)
        request = Request.of(str(folders[card.id]), options=options)
        return open_job(request, registry, Silent())

    return make


def run(component: Component, job: Job, *state: Tensor, patched: bool = False) -> Tensor:
    """Run a chain with the weights of its checkpoint."""
    stages = map(explicit, component.stages) if patched else component.stages
    with job.checkpoint as checkpoint:
        (made,) = run_stages(stages, checkpoint.tensor, *state)
    return made


def reference(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], position: Tensor, pixels: Tensor
) -> Tensor:
    """The oracle: transformers' tower with the given position of every patch."""
    model = SiglipVisionModel(
        SiglipVisionConfig(**settings, patch_size=14, image_size=14, vision_use_head=False)
    )
    # Its own table has a square of patches; ours has those of the image, one after the other.
    embeddings: Any = model.embeddings
    embeddings.position_embedding = torch.nn.Embedding(*position.shape)
    embeddings.position_ids = torch.arange(len(position))[None]
    model.load_state_dict({**weights, "embeddings.position_embedding.weight": position})
    with torch.no_grad():
        made: Tensor = model(pixels).last_hidden_state
    return made


@functools.cache
def stored(name: str) -> Mapping[str, Tensor]:
    """Return a tower's tensors as the checkpoint's bfloat16 holds them."""
    weights = random_weights(CARDS[name], CARDS[name].published.tiny_config)
    return {
        key.removeprefix("vpm."): value.bfloat16().float()
        for key, value in weights.items()
        if key.startswith("vpm.")
    }


def noise(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(4))


def check(make_job: MakeJob, card: ModelCard, height: int, width: int, patched: bool) -> None:
    """Hold a tower against the oracle."""
    job, pixels = make_job(card, height, width), noise(height, width)
    tower, _ = export_vision(job)
    expected = reference(*(as_v4 if card is V4 else as_v2)(job, height // 14, width // 14), pixels)
    made = run(tower, job, pixels, patched=patched)
    assert made.shape == tower.outputs[0].shape
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=1e-5)


def as_v4(job: Job, rows: int, columns: int) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Return settings, weights and positions for `reference`."""
    weights, vision = dict(stored(V4.id)), job.config["vision_config"]
    table = weights.pop("embeddings.position_embedding.weight")
    ids = torch.from_numpy(preprocess.position_ids(rows, columns, 70)).long()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    settings = {name: vision[name] for name in (*names, "hidden_act", "layer_norm_eps")}
    return settings, weights, table[ids[0]]


def as_v2(job: Job, rows: int, columns: int) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Return the same for timm's tower, whose positions are interpolated."""
    weights, encoder = as_siglip(stored(V2.id)), v2.ENCODERS[job.config["vision_encoder"]]
    table = weights.pop("pos_embed").reshape(1, 27, 27, -1).permute(0, 3, 1, 2)
    placed = F.interpolate(table, size=(rows, columns), mode="bicubic", antialias=True)
    settings = {
        "hidden_size": encoder.hidden,
        "intermediate_size": encoder.inner,
        "num_attention_heads": encoder.heads,
        "num_hidden_layers": encoder.depth - 1,
        "hidden_act": "gelu",
    }
    return settings, weights, placed.flatten(2)[0].T


def as_siglip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors as transformers names them, and unpack queries, keys and values."""
    renames = {
        "patch_embed.proj.": "embeddings.patch_embedding.",
        "blocks.": "encoder.layers.",
        ".norm1.": ".layer_norm1.",
        ".norm2.": ".layer_norm2.",
        ".attn.proj.": ".self_attn.out_proj.",
    }
    found = {}
    for key, value in weights.items():
        name = f"post_layernorm.{key.removeprefix('norm.')}" if key.startswith("norm.") else key
        for old, new in renames.items():
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = rows
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_tower_computes_what_siglip_does(
    make_job: MakeJob, card: ModelCard, height: int, width: int, patched: bool
) -> None:
    """V-4: tanh GELU, looked-up positions, final norm. V-2: erf GELU, packed projections,
    interpolated positions, a block less, and the norm kept.

    Oracle: transformers' SiglipVisionModel, for V-2 with timm's tensors renamed, which computes
    the same blocks, and torch's antialiased bicubic interpolation.
    """
    check(make_job, card, height, width, patched)


@settings(max_examples=8, deadline=None)
@given(rows=patches, columns=patches)
def test_any_size_that_fits(make_job: MakeJob, rows: int, columns: int) -> None:
    """Both towers on grids of 1 to 9 patches a side. Oracle: as above."""
    for card in (V4, V2):
        check(make_job, card, 14 * rows, 14 * columns, patched=False)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_strip_layout_gives_the_same_rows(make_job: MakeJob, height: int, width: int) -> None:
    """Patches side by side with their ids. Oracle: our plain layout."""
    plain, strip = (make_job(V4, height, width, layout=layout) for layout in ("plain", "strip"))
    pixels = noise(height, width)
    (tower, _), (stripped, _) = export_vision(plain), export_vision(strip)
    expected = run(tower, plain, pixels)
    ids = torch.from_numpy(preprocess.position_ids(height // 14, width // 14, 70))
    made = run(stripped, strip, torch.from_numpy(preprocess.strip(pixels.numpy())), ids)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_one_trace_serves_all_layers(make_job: MakeJob, card: ModelCard) -> None:
    """Kinds do not grow with depth, and nothing takes memory. Oracle: the chain's anatomy."""
    components = export_vision(make_job(card, 448, 448))
    kinds = [{stage.kind for stage in component.stages} for component in components]
    assert [len(kind) for kind in kinds] == [3, 1]
    modules = [stage.module for component in components for stage in component.stages]
    assert all(p.is_meta for module in modules for p in module.parameters())


def test_v4s_ports_are_the_published_ones(make_job: MakeJob) -> None:
    """Names, shapes and types at 448 x 448. Oracle: the published board script and exports.

    Widths are those of the small checkpoint.
    """
    ports = {}
    for layout in ("plain", "strip"):
        tower, resampler = export_vision(make_job(V4, 448, 448, layout=layout))
        ports[layout] = [(p.name, p.shape, p.dtype) for p in tower.inputs]
        (rows,), (tokens,) = tower.outputs, resampler.outputs
        assert (rows.name, rows.shape) == ("vision_embedding", (1, 1024, 64))
        assert (tokens.name, tokens.shape) == ("vision_embedding_out", (1, 64, 256))
        assert resampler.inputs == tower.outputs
    assert ports == {
        "plain": [("pixel_values", (1, 3, 448, 448), "float32")],
        "strip": [
            ("all_pixel_values", (1, 3, 14, 14336), "float32"),
            ("position_ids", (1, 1024), "int32"),
        ],
    }
