"""Our tower against the model's own class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

import axcore_plugins_qwen25vl as plugin
from axcore.testing import run_stages
from axcore_plugins_qwen25vl import vision

from .conftest import photograph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from axcore import Component, Job, Stage

    from .conftest import MakeJob

# Whole windows only; one window; ragged at one edge, at both; smaller than a window; not square.
SIZES = [(448, 448), (112, 112), (224, 112), (308, 308), (140, 196), (56, 56), (112, 308)]
sides = st.integers(2, 10).map(lambda cells: 28 * cells)


@pytest.fixture(scope="module")
def upstream(make_job: MakeJob) -> Any:
    """The oracle: transformers' own class, every parameter random (norms and biases too)."""
    config = Qwen2_5_VLVisionConfig(**make_job(112, 112).config["vision_config"])
    model = Qwen2_5_VisionTransformerPretrainedModel(config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name or "ln_q" in name else 0.0
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model


def run(stages: Iterable[Stage], weights: Mapping[str, Tensor], state: Tensor) -> Tensor:
    """Run a chain with the weights its stages ask for, by key."""
    (made,) = run_stages(stages, lambda key: weights[key.removeprefix("visual.")], state)
    return made


def compare(component: Component, job: Job, upstream: Any, patched: bool) -> None:
    """Feed both towers the same patches and compare their tokens."""
    frames = [photograph(300, 200, seed) for seed in range(component.images_per_sample)]
    assert component.preprocess is not None
    (sample,) = component.preprocess(frames)
    graph_input = torch.from_numpy(component.calibration.graph_input(sample["hidden_states"]))
    (port,), (promised,) = component.inputs, component.outputs
    assert graph_input.shape == port.shape
    rows = graph_input[0].transpose(0, 1).reshape(-1, 3 * 392)
    grid = torch.tensor([[1, job.profile.height // 14, job.profile.width // 14]])
    stages = [plugin.patch_attention(s) if patched else s for s in component.stages]
    ours = run(stages, upstream.state_dict(), graph_input)
    with torch.no_grad():
        theirs = upstream(rows, grid_thw=grid).pooler_output
    assert ours.shape == promised.shape
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_chain_computes_what_the_model_class_does(
    make_job: MakeJob, upstream: Any, height: int, width: int, patched: bool
) -> None:
    """Tokens of a still image, with and without batched windows. Oracle: transformers."""
    job = make_job(height, width)
    (component,) = plugin.export_vision(job)
    compare(component, job, upstream, patched)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
def test_a_temporal_step_of_two_frames(make_job: MakeJob, upstream: Any, patched: bool) -> None:
    """Tokens of two frames that differ. Oracle: transformers."""
    job = make_job(308, 308, task="video")
    (component,) = plugin.export_vision(job)
    assert component.images_per_sample == 2
    compare(component, job, upstream, patched)


@settings(max_examples=12, deadline=None)
@given(height=sides, width=sides, patched=st.booleans())
def test_any_size_that_fits(
    make_job: MakeJob, upstream: Any, height: int, width: int, patched: bool
) -> None:
    """Tokens of images of 56 to 280 px, square and not. Oracle: transformers."""
    job = make_job(height, width)
    (component,) = plugin.export_vision(job)
    compare(component, job, upstream, patched)


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), side=st.integers(1, 6))
def test_windows_hold_every_cell_once(rows: int, columns: int, side: int) -> None:
    """Windows are a partition of the grid. Oracle: the coordinates of the cells.

    Two cells share a window exactly when they share the whole-window square they lie in.
    """
    groups = vision.windows(rows, columns, side)
    listed = torch.cat([group.flatten() for group in groups])
    assert sorted(listed.tolist()) == list(range(rows * columns))
    squares = [
        {(cell // columns // side, cell % columns // side) for cell in window}
        for group in groups
        for window in group.tolist()
    ]
    assert all(len(square) == 1 for square in squares)
    assert len(squares) == len(set.union(*squares))


def test_one_trace_per_kind(make_job: MakeJob) -> None:
    """Four kinds, whatever the depth. Oracle: the small config's depth and full block."""
    (component,) = plugin.export_vision(make_job(448, 448))
    kinds = [stage.kind for stage in component.stages]
    assert kinds == ["patch_embed", *["window_block"] * 3, "full_block", "merger"]


@pytest.mark.parametrize(
    ("side", "runs"), [(448, ((16, 64),)), (308, ((4, 64), (4, 48), (1, 36)))], ids=str
)
def test_windows_of_one_size_are_one_batch(make_job: MakeJob, side: int, runs: vision.Runs) -> None:
    """What a patched block attends at once. Oracle: 4 x 4 whole windows; 11 = 4 + 4 + 3 cells."""
    (component,) = plugin.export_vision(make_job(side, side))
    block = plugin.patch_attention(component.stages[1]).module
    assert isinstance(block, vision.Block)
    assert isinstance(block.attn.attend, vision.Windowed)
    assert block.attn.attend.runs == runs


@pytest.mark.parametrize("index", range(6))
def test_patching_twice_is_patching_once(make_job: MakeJob, index: int) -> None:
    """A patched stage is left alone and keeps its parameters; patching changes no original."""
    (component,) = plugin.export_vision(make_job(308, 308))
    stage = component.stages[index]
    form = str(stage.module)
    once = plugin.patch_attention(stage)
    assert plugin.patch_attention(once) == once
    assert str(stage.module) == form
    assert (once.name, once.kind, once.weights()) == (stage.name, stage.kind, stage.weights())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_its_type_and_its_meaning(
    make_job: MakeJob, upstream: Any, dtype: torch.dtype
) -> None:
    """A chain in low precision stays in it and near float32. Oracle: our own float32 chain."""
    (component,) = plugin.export_vision(make_job(140, 196))
    given = torch.randn(component.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    exact, rough = (
        run(component.stages, upstream.state_dict(), x) for x in (given, given.to(dtype))
    )
    assert rough.dtype == dtype
    assert torch.nn.functional.cosine_similarity(rough.float(), exact).min() > 0.99
