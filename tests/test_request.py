"""What the API takes at its edge: every field of a request, coerced or refused by name."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import axcore
from axcore import Choice, Options, UsageError
from axcore.pipeline.job import choose
from axcore.request import CheckpointRequest, Request

TEXTS = (
    "model", "checkpoint", "revision", "family", "task", "calibration_archive", "toolchain"
)  # fmt: skip
NUMBERS = ("height", "width", "opset", "prefill_len", "kv_cache_len")
SWITCHES = ("verify", "lint", "vision_only", "copy_code")
CHOSEN = ("weights", "source", "dtype", "lengths", "names")
SEVERAL = ("split", "last_kv_cache_len", "embedding_formats", "images", "choices")
# What no field takes, and what only some take.
NOTHING = st.sampled_from([3.5, float("nan"), b"448", object(), [[448]], {448: 448}])
WRONG = {
    **dict.fromkeys(TEXTS, NOTHING | st.integers() | st.booleans() | st.just([])),
    **dict.fromkeys(NUMBERS, NOTHING | st.text() | st.booleans() | st.just(Path("448"))),
    **dict.fromkeys(SWITCHES, NOTHING | st.text() | st.integers() | st.none()),
    **dict.fromkeys(CHOSEN, NOTHING | st.sampled_from(["tiny", "hf", "int8", "", 0, True])),
    **dict.fromkeys(SEVERAL, NOTHING | st.sampled_from([True, [None], {"a": 1}])),
}


@given(st.sampled_from(sorted(WRONG)).flatmap(lambda f: st.tuples(st.just(f), WRONG[f])))
def test_a_value_of_a_wrong_kind_is_refused_by_name(wrong: tuple[str, Any]) -> None:
    """Whatever is given, in every field. Oracle: the kinds of the fields, written out above."""
    name, value = wrong
    with pytest.raises(UsageError, match=f"^an argument is wrong: {name}") as caught:
        Request.of(**{"model": "toy", name: value})
    assert caught.value.hint.startswith(f"{name}: ")


def test_every_field_is_tried() -> None:
    """Oracle: the dataclass."""
    assert {item.name for item in fields(Request)} == WRONG.keys()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"checkpoint": Path("folder")}, {"checkpoint": "folder"}),
        ({"images": "cat.jpg"}, {"images": (Path("cat.jpg"),)}),
        ({"images": Path("cat.jpg")}, {"images": (Path("cat.jpg"),)}),
        ({"images": ["a, b.jpg", Path("c")]}, {"images": (Path("a, b.jpg"), Path("c"))}),
        ({"images": None}, {"images": ()}),
        ({"embedding_formats": "npy, pth"}, {"embedding_formats": ("npy", "pth")}),
        ({"embedding_formats": ["npy,pth", "x"]}, {"embedding_formats": ("npy", "pth", "x")}),
        ({"last_kv_cache_len": 128}, {"last_kv_cache_len": (128,)}),
        ({"last_kv_cache_len": range(64, 129, 64)}, {"last_kv_cache_len": (64, 128)}),
        ({"split": "2"}, {"split": 2}),
        ({"split": "auto"}, {"split": "auto"}),
        ({"chip": "M57", "npu_mode": "NPU1"}, {"choices": {"chip": "M57", "npu-mode": "NPU1"}}),
        ({"fold_scales": True, "level": 2}, {"choices": {"fold-scales": "yes", "level": "2"}}),
        ({"options": Options(height=56, width=84), "width": 112}, {"height": 56, "width": 112}),
        (
            {"options": Options(choices={"chip": "M57", "rest": "x"}), "chip": "AX650"},
            {"choices": {"chip": "AX650", "rest": "x"}},
        ),
    ],
)  # fmt: skip
def test_what_a_user_writes_becomes_the_declared_types(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Paths as text, one for several, commas, switches; names without a field are options.

    Oracle: written out; all else is as declared.
    """
    assert Request.of(Path("toy"), **given) == Request("toy", **expected)


def test_a_request_is_taken_and_changed() -> None:
    """A given one stays as it is; arguments win over it. Oracle: written out."""
    before = Request("toy", height=56, choices={"chip": "M57"})
    assert Request.of(before) == before
    changed = Request.of(before, width=84, chip="AX650")
    assert changed == Request("toy", height=56, width=84, choices={"chip": "AX650"})
    assert before.choices == {"chip": "M57"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"height": "448"}, "height: '448' is not of type int"),
        ({"weights": "tiny"}, "weights: 'tiny' is not one of 'random-tiny', 'random-full'"),
        ({"chp": "AX650"}, "no option --chp"),
        ({"options": {"chip": "AX650"}}, "options: .* is not an axcore.Options"),
        ({"images": 5}, "images.0: 5"),
        ({"task": "audio"}, "no task `audio`"),
        ({"opset": 15}, "opset 15"),
    ],
)
def test_a_mistake_of_the_user_is_blamed_on_nobody_else(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    """And is told before anything is done. Oracle: the words of the message, and the folder."""
    for verb in (axcore.convert, axcore.plan):
        with pytest.raises(UsageError, match=words) as caught:
            verb("qwen2.5-vl-3b", out=tmp_path / "out", checkpoint=str(tmp_path), **given)
        assert "plugin" not in caught.value.message + caught.value.hint
        assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_quantize_takes_the_checkpoint_alone(tmp_path: Path) -> None:
    """Oracle: a field of a conversion, refused with those that there are."""
    with pytest.raises(UsageError, match="no argument `height`") as caught:
        axcore.quantize("qwen2.5-vl-3b", tmp_path / "out", height=448)
    assert "weights" in caught.value.hint
    with pytest.raises(UsageError, match=r"model: .* is not of type str"):
        axcore.convert(CheckpointRequest("qwen2.5-vl-3b"), tmp_path / "out")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verb", "request_"),
    [
        (axcore.plan, Request),
        (axcore.convert, Request),
        (axcore.quantize, CheckpointRequest),
    ],
)
def test_help_names_every_field(verb: Any, request_: type[CheckpointRequest]) -> None:
    """With its default, and with its meaning where it is declared. Oracle: the dataclass."""
    signature, text = inspect.signature(verb), pydoc.plain(pydoc.render_doc(verb))
    told = [item for item in fields(request_) if item.metadata]
    assert len(told) > 4
    for item in told:
        assert f"{item.name}: " in text
        assert item.metadata["help"] in str(request_.__doc__)
        if item.name != "model":
            assert signature.parameters[item.name].default == item.default


def test_an_option_of_model_and_toolchain_is_not_guessed() -> None:
    """Both declare it, so neither gets it. Oracle: the two declarations."""
    toolchain = SimpleNamespace(name="tool", options={"fit": Choice(("a", "b"))})
    registry: Any = SimpleNamespace(toolchains={"tool": toolchain})
    card: Any = SimpleNamespace(id="toy", choices={"fit": Choice(("a", "b"))})
    request = Request.of("toy", toolchain="tool", fit="b")
    with pytest.raises(UsageError, match="--fit is an option of `toy` and of toolchain `tool`"):
        choose(request, card, registry)
