"""The default `patch_attention`. Oracle: torch's own attention."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from axcore import Component, Port, Silent, Stage
from axcore.checkpoint import Checkpoint
from axcore.graph.attention import ExplicitMultiheadAttention, attend, explicit
from axcore.graph.contract import check_component
from axcore.graph.stitch import Tracer
from axcore.graph.verify import verify_component
from axcore.toolchains.pulsar2 import Pulsar2
from axcore.toolchains.pulsar2.chips import chip_target

from . import toy
from .conftest import export

if TYPE_CHECKING:
    from pathlib import Path

MASKS = ("none", "bool", "float", "causal")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(MASKS), scale=st.sampled_from([None, 0.5]))
def test_attend_is_scaled_dot_product_attention(
    data: st.DataObject, kind: str, scale: float | None
) -> None:
    """Any shape, mask and scale, grouped heads included. Oracle: torch's own function."""
    batch, rows, columns, width = (data.draw(st.integers(1, 5)) for _ in range(4))
    key_heads, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    q = torch.randn(batch, key_heads * groups, rows, width, generator=generator)
    k, v = (torch.randn(batch, key_heads, columns, width, generator=generator) for _ in range(2))
    mask = _mask(kind, rows, columns, generator)
    options: dict[str, Any] = {"is_causal": kind == "causal", "scale": scale}
    made = attend(q, k, v, mask, 0.0, enable_gqa=groups > 1, **options)
    expected = F.scaled_dot_product_attention(q, k, v, mask, 0.0, enable_gqa=groups > 1, **options)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def _mask(kind: str, rows: int, columns: int, generator: torch.Generator) -> Tensor | None:
    if kind == "bool":  # one column is always visible: torch gives NaN for a row that sees none
        return (torch.rand(rows, columns, generator=generator) > 0.5).index_fill(
            1, torch.tensor([0]), True
        )
    return torch.randn(rows, columns, generator=generator) if kind == "float" else None


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("batched", [True, False])
def test_multihead_attention(
    batch_first: bool, bias: bool, cross: bool, mask: str, batched: bool
) -> None:
    """Self and cross, masked and not, every layout. Oracle: torch's own module."""
    generator = torch.Generator().manual_seed(1)
    plain = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, generator=generator)
    rows, columns = 4, 5 if cross else 4
    sides = [(rows,), (columns,)]
    if batched:
        sides = [(2, n) if batch_first else (n, 2) for (n,) in sides]
    query, other = (torch.randn(*side, 12, generator=generator) for side in sides)
    key = other if cross else query
    visible = _mask(mask, rows, columns, generator)
    hidden = ~visible if visible is not None and visible.dtype == torch.bool else visible
    with torch.no_grad():
        expected, _ = plain(query, key, key, attn_mask=hidden, need_weights=False)
        made, weights = ExplicitMultiheadAttention(plain)(query, key, key, attn_mask=hidden)
    assert weights is None
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


# Patching a stage --------------------------------------------------------------------------------


class Both(nn.Module):
    """A stage that attends through torch's module and through its function."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True, device="meta")
        self.out = nn.Linear(12, 12, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attn(x, x, x, need_weights=False)[0]
        z: Tensor = self.out(F.scaled_dot_product_attention(y, y, y))
        return z


def test_patching_twice_is_patching_once() -> None:
    """The second time nothing changes; names, shapes and the original stay. Oracle: the law."""
    stage = Stage("both", Both(), "x.")
    once = explicit(stage)
    assert explicit(once) is once
    assert type(stage.module) is Both
    assert isinstance(once.module, Both)
    assert isinstance(once.module.attn, ExplicitMultiheadAttention)
    shapes = [(name, p.shape) for name, p in stage.module.named_parameters()]
    assert [(name, p.shape) for name, p in once.module.named_parameters()] == shapes


def test_a_patched_stage_computes_what_the_plain_one_does() -> None:
    """With real weights bound, as verification does. Oracle: the plain stage."""
    stage, generator = Stage("both", Both()), torch.Generator().manual_seed(2)
    weights = {
        name: torch.randn(p.shape, generator=generator)
        for name, p in stage.module.named_parameters()
    }
    x = torch.randn(1, 7, 12, generator=generator)
    with torch.no_grad():
        plain, patched = (
            torch.func.functional_call(module.eval(), weights, (x,))
            for module in (stage.module, explicit(stage).module)
        )
    torch.testing.assert_close(patched, plain, atol=1e-5, rtol=1e-5)


def test_an_unusual_attention_is_left_to_torch() -> None:
    """Separate projections for keys of another width are not rewritten. Oracle: the type."""
    holder = nn.Sequential(nn.MultiheadAttention(12, 3, kdim=8, vdim=8))
    patched = explicit(Stage("odd", holder)).module
    assert isinstance(patched, nn.Sequential)
    assert type(patched[0]) is nn.MultiheadAttention


def exported_whole(stage: Stage, ports: tuple[Port, Port], folder: Path, weights: Any) -> Any:
    """Export and verify a component of one stage; return its file."""
    component = Component("vision", "Whole", (stage,), (ports[0],), (ports[1],))
    with Checkpoint.open(toy.write(folder / "checkpoint", weights)) as checkpoint:
        check_component(component, checkpoint)
        tracer = Tracer(explicit, torch.float32, 17)
        (path,) = export(component, checkpoint, tracer, folder)
        feed = {ports[0].name: np.random.default_rng(0).random(ports[0].shape, np.float32)}
        verify_component(
            component, [path], checkpoint, tracer, feed, dtype="float32", progress=Silent()
        )
    return path


def test_the_exported_graph_has_only_listed_operators(tmp_path: Path) -> None:
    """Both kinds of attention at once. Oracle: the chip's operator table."""
    stage = Stage("both", Both())
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(p.shape, generator=generator) * 0.3
        for name, p in stage.module.named_parameters()
    }
    ports = Port("x", (1, 7, 12)), Port("y", (1, 7, 12))
    path = exported_whole(stage, ports, tmp_path, weights)
    assert Pulsar2().lint(path, chip_target("AX650")) == []


def test_a_class_of_transformers_works_as_one_stage(tmp_path: Path) -> None:
    """A tower nobody decomposed is traced whole and verifies. Oracle: the class with its weights.

    Its fused attention is patched; constants are real and parameters on the meta device.
    """
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=28,
        patch_size=14,
    )
    model = SiglipVisionModel(config).eval()
    generator = torch.Generator().manual_seed(4)
    weights = {
        name: torch.randn(p.shape, generator=generator) * 0.2
        for name, p in model.named_parameters()
    }
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    stage = Stage("tower", Tokens(_hollow(model)), {f"model.{name}": name for name in weights})
    ports = Port("pixels", (1, 3, 28, 28)), Port("tokens", (1, 4, 24))
    path = exported_whole(stage, ports, tmp_path, weights)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"pixels": pixels.numpy()})
    np.testing.assert_allclose(made, expected, atol=1e-4, rtol=1e-4)


class Tokens(nn.Module):
    """A class of transformers as a stage: a tensor in, a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixels).last_hidden_state
        return tokens


def _hollow(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters are on the meta device while its buffers stay."""
    hollow = copy.deepcopy(model)
    for module in hollow.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
    return hollow
