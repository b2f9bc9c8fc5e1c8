"""Our tower against the model's own class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import axcore_plugins_qwen35 as plugin
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

from axcore.testing import run_stages

from .conftest import photograph

if TYPE_CHECKING:
    from axcore import Component, Job

    from .conftest import MakeJob


@pytest.fixture(scope="module")
def upstream(make_job: MakeJob) -> Any:
    """The oracle: transformers' own class, every parameter random (norms and biases too)."""
    config = Qwen3_5VisionConfig(**make_job(256, 256).config["vision_config"])
    model = Qwen3_5VisionModel(config)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model


def compare(component: Component, job: Job, upstream: Any) -> None:
    """Feed both towers the same patches and compare tokens."""
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
    for promised, one, other in zip(component.outputs, ours, [theirs.pooler_output], strict=True):
        assert one.shape == promised.shape
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


cells = st.integers(1, 6).map(lambda count: 32 * count)


@settings(max_examples=4, deadline=None)
@given(height=cells, width=cells)
def test_the_chain_computes_what_the_model_class_does(
    make_job: MakeJob, upstream: Any, height: int, width: int
) -> None:
    """Tokens of a temporal step of two frames, at any size that fits.

    Sizes smaller and larger than the table of positions, 9 x 9. Oracle: transformers' class.
    """
    if height * width >= 2048:
        job = make_job(height, width, "video")
        (component,) = plugin.export_vision(job)
        assert component.images_per_sample == 2
        compare(component, job, upstream)


def test_a_still_image_is_shown_twice(make_job: MakeJob, upstream: Any) -> None:
    """Tokens of an image that is not square. Oracle: transformers' class."""
    job = make_job(256, 320)
    (component,) = plugin.export_vision(job)
    compare(component, job, upstream)


def test_one_trace_per_kind(make_job: MakeJob) -> None:
    """Three kinds, whatever the depth. Oracle: the small config's depth of 3."""
    (component,) = plugin.export_vision(make_job(256, 256))
    kinds = [stage.kind for stage in component.stages]
    assert kinds == ["patch_embed", *["block.0"] * 3, "merger"]


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
