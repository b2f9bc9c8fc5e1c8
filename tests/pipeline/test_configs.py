"""A config.json with anything in it gives a job, or one error that names file and place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axcore import AxcoreError, CheckpointError, Job, Registry, Request, Silent
from axcore.checkpoint import fabricate
from axcore.pipeline.job import open_job
from axcore.pipeline.prepared import prepare

MODELS = (
    "qwen2.5-vl-3b", "internvl3-1b", "minicpm-v-2", "minicpm-v-4", "minicpm-v-4.6",
    "smolvlm2-500m", "lfm2-vl-450m",
)  # fmt: skip
REGISTRY = Registry()
VALUES = st.sampled_from(
    [
        *(None, True, False, -1, 0, 1, 3, 1000, 10**6, 10**30, 10**400, -0.5, 1.5, 14.0),
        *(float("nan"), float("inf"), "", "x", "64", [], [1], [1, 1], ["x"], [None], [[1]], {}),
        *({"a": 1}, [2] * 1000),
    ]
)
FIELDS = ("text_config", "llm_config", "rope_scaling", "rope_parameters", "layer_types", "head_dim")


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, once: Any) -> Path:
    """A tiny checkpoint whose config may be changed; the other files are links."""
    card = REGISTRY.find(request.param).card
    shared = once(f"config-{card.id}", lambda path: fabricate(card, "tiny", path))
    for path in shared.iterdir():
        if path.name == "config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
        else:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def opened(model: str) -> Job:
    """Return the job for a folder, after asking its family for components and arguments too."""
    request = Request.of(model)
    job = open_job(request, REGISTRY, Silent())
    prepare(request, REGISTRY, job)
    return job


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(node, dict):
        for name, value in node.items():
            yield from places(value, (*at, name))


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_refused(folder: Path, data: st.DataObject) -> None:
    """Values of the published config dropped, retyped or made extreme, fields added.

    Oracle: nothing but `AxcoreError` comes out, as of everything that is expected to fail.
    """
    original = (folder / "config.json").read_text()
    config = json.loads(original)
    added = [(*at, name) for at in ((), ("vision_config",)) for name in FIELDS]
    *above, name = data.draw(st.sampled_from([*places(config)][1:] + added))
    part = config
    for step in above:
        part = part.get(step, {})
    if name in part and data.draw(st.booleans()):
        del part[name]
    else:
        part[name] = data.draw(VALUES)
    try:
        (folder / "config.json").write_text(json.dumps(config))
        opened(str(folder))
    except AxcoreError:
        pass
    finally:
        (folder / "config.json").write_text(original)


def changed(folder: Path, *path: str, to: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    part = config
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(str(folder))
    assert str(folder / "config.json") in caught.value.message
    return caught.value.message


REFUSED: dict[str, list[tuple[tuple[str, ...], Any, str]]] = {
    "qwen2.5-vl-3b": [
        (("vision_config", "hidden_act"), "gelu", "vision_config.hidden_act: 'gelu' is not one of"),
        (("vision_config", "depth"), 10**6, "vision_config.depth: 1000000 is not between 1"),
        (("vision_config", "depth"), 4.0, "vision_config.depth: 4.0 is not of type int"),
        (("vision_config", "depth"), True, "vision_config.depth: True is not of type int"),
        (("vision_config", "depth"), "4", "vision_config.depth: '4' is not of type int"),
        (("vision_config", "depth"), -1, "vision_config.depth: -1 is not between"),
        (("vision_config", "patch_size"), 14.0, "vision_config.patch_size: 14.0 is not one of 14"),
        (("vision_config", "num_heads"), 3, "vision_config.hidden_size: no multiple of 4 in each"),
        (("vision_config", "window_size"), 30, "vision_config.window_size: 30 is no multiple"),
        (("num_hidden_layers",), 10**6, "num_hidden_layers: 1000000 is not between 1 and 1000"),
        (("num_key_value_heads",), 3, "num_attention_heads: 4 is no multiple of 3"),
        (("layer_types",), ["full_attention"] * 9, "layer_types: 9 are listed for 2 layers"),
        (("text_config",), ["x"], "text_config: ['x'] is not an object"),
        (("conv_L_cache",), 1 << 20, "conv_L_cache: 1048576 is not between 2 and 64"),
        (("no_rope_layers",), [1] * 9, "no_rope_layers: 9 are listed for 2 layers"),
        (
            ("rope_parameters",),
            {"full_attention": {"rope_theta": "x"}},
            "rope_parameters.full_attention.rope_theta: 'x' is not of type float",
        ),
    ],
    "internvl3-1b": [
        (("projector_hidden_act",), "relu", "projector_hidden_act: 'relu' is not one of 'gelu'"),
        (("vision_config", "image_size"), [448, 14], "vision_config.image_size: [448, 14] are not"),
        (("llm_config", "num_attention_heads"), 0, "llm_config.num_attention_heads: 0 is not"),
        (("llm_config", "rms_norm_eps"), "x", "llm_config.rms_norm_eps: 'x' is not of type float"),
    ],
    "minicpm-v-2": [
        (("vision_encoder",), "vit_giant", "vision_encoder: 'vit_giant' is not one of"),
        (("scale_depth",), 0, "scale_depth: 0.0 is not between"),
    ],
    "minicpm-v-4": [
        (("vision_config", "hidden_act"), "gelu", "vision_config.hidden_act: 'gelu' is not one of"),
        (("eos_token_id",), 2, "eos_token_id: 2 is not of type list"),
        (("scale_emb",), 12, "scale_emb: 12 is not one of 1"),
    ],
    "minicpm-v-4.6": [
        (("vision_config", "hidden_act"), "silu", "vision_config.hidden_act: 'silu' is not one of"),
        (("insert_layer_id",), 4, "insert_layer_id: 4 is none of 4 layers"),
        (("merger_times",), 2, "merger_times: 2 is not one of 1"),
        (("drop_vision_last_layer",), True, "drop_vision_last_layer: True is not one of False"),
    ],
    "smolvlm2-500m": [
        (("scale_factor",), 3, "scale_factor: 3 does not divide 32, the patches along a side"),
        (("text_config", "model_type"), "mistral", "text_config.model_type: 'mistral' is not one"),
        (("vision_config", "image_size"), 10**6, "vision_config.image_size: 1000000 is no square"),
        (("vision_config", "hidden_act"), "gelu", "vision_config.hidden_act: 'gelu' is not one of"),
    ],
    "lfm2-vl-450m": [
        (("downsample_factor",), 4, "downsample_factor: 4 is not one of 2"),
        (("projector_hidden_act",), "relu", "projector_hidden_act: 'relu' is not one of 'gelu'"),
        (("vision_config", "num_patches"), 255, "vision_config.num_patches: 255 is no square of"),
        (("text_config", "layer_types"), ["conv", "x", "conv"], "layer_types.1: 'x' is not one of"),
        (("text_config", "num_attention_heads"), 24, "hidden_size: not a multiple of 24 heads"),
    ],
}


def test_what_is_not_computed_is_refused_by_name(folder: Path) -> None:
    """Before lists of layers are made. Oracle: the change, and its path in the file."""
    original = (folder / "config.json").read_text()
    model = json.loads((folder / "fabricated.json").read_text())["card"]
    for path, value, evidence in REFUSED[model]:
        changed(folder, *path, to=value)
        assert evidence in refused(folder)
        (folder / "config.json").write_text(original)
    assert opened(str(folder)).card.id == model


@pytest.mark.parametrize("folder", MODELS[:1], indirect=True)
@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/model", "a\0b"])
def test_a_name_that_no_folder_can_have_is_a_name_of_no_model(folder: Path, name: str) -> None:
    """Oracle: the errors for unknown models and folders."""
    del folder
    for asked in ({"model": name}, {"model": MODELS[0], "checkpoint": f"./{name}"}):
        with pytest.raises(AxcoreError):
            open_job(Request.of(**asked), REGISTRY, Silent())
