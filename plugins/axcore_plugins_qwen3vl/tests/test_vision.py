"""Our tower against the model's own class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import axcore_plugins_qwen3vl as plugin
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from axcore.testing import run_stages

from .conftest import photograph

if TYPE_CHECKING:
    from axcore import Component, Job

    from .conftest import MakeJob


@pytest.fixture(scope="module")
def upstream(make_job: MakeJob) -> Any:
    """The oracle: transformers' own class, every parameter random (norms and biases too)."""
    config = Qwen3VLVisionConfig(**make_job(256, 256).config["vision_config"])
    model = Qwen3VLVisionModel(config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model


def compare(component: Component, job: Job, upstream: Any) -> None:
    """Feed both towers the same patches and compare tokens and features."""
    frames = [photograph(300, 200, seed) for seed in range(component.images_per_sample)]
    assert component.preprocess is not None
    (sample,) = component.preprocess(frames)
    graph_input = torch.from_numpy(component.calibration.graph_input(sample["hidden_states"]))
    (port,) = component.inputs
    assert graph_input.shape == port.shape
    rows = graph_input[0].transpose(0, 1).reshape(-1, 3 * 512)
    grid = torch.tensor([[1, job.profile.height // 16, job.profile.width // 16]])
    weights = upstream.state_dict()
    ours = run_stages(
        component.stages, lambda key: weights[key.removeprefix("visual.")], graph_input
    )
    with torch.no_grad():
        theirs = upstream(rows, grid_thw=grid)
    expected = [theirs.pooler_output, *theirs.deepstack_features]
    for promised, one, other in zip(component.outputs, ours, expected, strict=True):
        assert one.shape == promised.shape
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


cells = st.integers(1, 6).map(lambda count: 32 * count)


@settings(max_examples=4, deadline=None)
@given(height=cells, width=cells)
def test_the_chain_computes_what_the_model_class_does(
    make_job: MakeJob, upstream: Any, height: int, width: int
) -> None:
    """Tokens and features of a temporal step of two frames, at any size that fits.

    Sizes smaller and larger than the table of positions, 9 x 9. Oracle: transformers' class.
    """
    if height * width >= 2048:
        job = make_job(height, width, "video")
        (component,) = plugin.export_vision(job)
        assert component.images_per_sample == 2
        compare(component, job, upstream)


def test_a_still_image_is_shown_twice(make_job: MakeJob, upstream: Any) -> None:
    """Tokens and features of an image that is not square. Oracle: transformers' class."""
    job = make_job(256, 320)
    (component,) = plugin.export_vision(job)
    compare(component, job, upstream)
    assert [port.layer for port in component.outputs] == [None, 0, 1]


def test_few_traces_whatever_the_depth(make_job: MakeJob) -> None:
    """A kind of block for each number of features that travel with the state.

    Oracle: the small config's depth of 3, with features behind its first two blocks.
    """
    (component,) = plugin.export_vision(make_job(256, 256))
    pairs = [f"{place}.{index}" for index in range(2) for place in ("block", "deepstack")]
    kinds = [stage.kind for stage in component.stages]
    assert kinds == ["patch_embed", *pairs, "block.2", "merger"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_its_type_and_its_meaning(
    make_job: MakeJob, upstream: Any, dtype: torch.dtype
) -> None:
    """A chain in low precision stays in it and near float32. Oracle: our own float32 chain."""
    (component,) = plugin.export_vision(make_job(64, 96, "video"))
    given = torch.randn(component.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    weights = upstream.state_dict()
    exact, rough = (
        run_stages(component.stages, lambda key: weights[key.removeprefix("visual.")], x)
        for x in (given, given.to(dtype))
    )
    for one, other in zip(rough, exact, strict=True):
        assert one.dtype == dtype
        assert torch.nn.functional.cosine_similarity(one.float(), other).min() > 0.99
