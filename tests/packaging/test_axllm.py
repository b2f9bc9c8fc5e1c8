"""The folder for ``axllm``: its keys, and that what they name is there."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest

import axcore
from axcore import BundleError, CheckpointError, ContractError, LlmBuildArgs, UnsupportedModel
from axcore.plain import plain

from ..bundles import change_json
from . import toys
from .toys import CHUNK, EMBEDDING, HIDDEN, KIND, LAYERS, MODEL, STEM, VOCABULARY

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = {
    "model_name", "tokenizer_type", "url_tokenizer_model", "template_filename_axmodel",
    "axmodel_num", "filename_post_axmodel", "filename_tokens_embed", "tokens_embed_num",
    "tokens_embed_size", "post_config_path", "vlm_type", "filename_image_encoder_axmodel",
}  # fmt: skip


def packaged(bundle: Path) -> Path:
    return toys.packaged(bundle, "axllm")


def test_settings_name_what_is_there(bundle: Path) -> None:
    """Every key that ``axllm`` requires is set, every file named exists, sizes are true.

    Oracle: the keys its documentation lists, and the bundle.
    """
    out = packaged(bundle)
    config = json.loads((out / "config.json").read_text())
    assert config.keys() >= REQUIRED
    named = {key: config[key] for key in config if key.startswith("filename_")}
    assert named == {
        "filename_post_axmodel": f"{KIND}_post.axmodel",
        "filename_tokens_embed": EMBEDDING,
        "filename_image_encoder_axmodel": f"{STEM}.axmodel",
    }
    layers = [config["template_filename_axmodel"] % i for i in range(config["axmodel_num"])]
    assert layers == [toys.layer(i) for i in range(LAYERS)]
    others = [config[key] for key in ("url_tokenizer_model", "post_config_path")]
    made = {"config.json", "axcore.json", "sbom.cdx.json"}
    assert {path.name for path in out.iterdir()} == {*named.values(), *layers, *others, *made}
    for name in [*named.values(), *layers]:
        assert (out / name).read_bytes() == (bundle / name).read_bytes()
    assert config["tokens_embed_num"] * config["tokens_embed_size"] * 2 == (
        (out / EMBEDDING).stat().st_size
    )
    assert (config["tokens_embed_num"], config["tokens_embed_size"]) == (VOCABULARY, HIDDEN)
    assert (config["vision_height"], config["vision_width"]) == (56, 84)
    assert config["model_name"] == MODEL
    assert config.items() >= toys.AXLLM.items()


def test_sampling_is_off(bundle: Path) -> None:
    """Packages are published greedy: every switch is there and false."""
    sampling = json.loads((packaged(bundle) / "post_config.json").read_text())
    switches = {key: value for key, value in sampling.items() if key.startswith("enable_")}
    assert len(switches) == 4
    assert not any(switches.values())
    assert {key.removeprefix("enable_").removesuffix("_sampling") for key in switches} < set(
        sampling
    )


def test_every_configured_end_stops_an_answer(bundle: Path) -> None:
    """The generation file's, the config's and the tokenizer's own. Oracle: the toy bundle."""
    lines = (packaged(bundle) / "tokenizer.txt").read_text().splitlines()
    special, stop, _ = map(int, lines[1].split())
    end = toys.tokenizer().get_vocab()[toys.END]
    assert [int(n) for n in lines[2].split()][special:] == sorted([7, 8, 9, end])
    assert stop == 4


def test_without_an_end_there_is_no_folder(bundle: Path) -> None:
    """An answer would never stop; the message names the folder that was looked into."""
    for name in ("generation_config.json", "tokenizer_config.json"):
        (bundle / name).unlink()
    (bundle / "config.json").write_text("{}")
    change_json(bundle / "axcore.json", files={})
    with pytest.raises(CheckpointError, match="which token ends an answer"):
        packaged(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": {"key": "e", "shape": [VOCABULARY, HIDDEN], "scale": 12.0}}, "by 12"),
        (
            {"build": plain(toys.request(llm=LlmBuildArgs(CHUNK, 31, hidden_state_type="fp32")))},
            "which take fp32",
        ),
        (
            {"build": plain(toys.request(graphs=toys.request().graphs * 2))},
            "one vision file, not 2",
        ),
    ],
)
def test_what_axllm_would_answer_nonsense_with_is_refused(
    bundle: Path, changes: dict[str, Any], message: str
) -> None:
    """A scale it does not apply, states it does not feed, vision files it does not chain."""
    change_json(bundle / "axcore.json", **changes)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        packaged(bundle)
    assert "--runtime python" in caught.value.hint
    assert not (bundle.parent / "board").exists()


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        (LlmBuildArgs(320, 1023), "takes chunks of a power of two, not of 320 .* reckon 64 of the"),
        (LlmBuildArgs(24, 31, (24,)), "a power of two, not of 24"),
        (LlmBuildArgs(512, 1023), "needs a history"),
        (LlmBuildArgs(64, 100), "needs a history"),
    ],
)
def test_lengths_that_crash_axllm_are_refused(
    bundle: Path, llm: LlmBuildArgs, message: str
) -> None:
    """The hint is the conversion that works, its options as they were.

    Oracle: what `axllm` needs, of lengths that hold as long a prompt as before.
    """
    options = axcore.Options(height=112, embedding_formats=("npy", "pth"), prefill_len=320)
    change_json(
        bundle / "axcore.json",
        build=plain(toys.request(llm=llm)),
        options=plain(options),
    )
    with pytest.raises(UnsupportedModel, match=message) as caught:
        packaged(bundle)
    words = shlex.split(caught.value.hint.split("`")[1])
    assert words[:3] == ["axcore", "convert", MODEL]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    lengths = [int(v) for k, v in zip(words[3::2], words[4::2], strict=True) if "last" in k]
    chunk, cache = int(given["--prefill-len"]), int(given["--kv-cache-len"])
    assert given.items() >= {
        "--checkpoint": "/nowhere", "-o": str(bundle), "--height": "112",
        "--embedding-format": "npy,pth",
    }.items()  # fmt: skip
    assert chunk in {2**n for n in range(8)}
    assert lengths == list(range(chunk, lengths[-1] + 1, chunk))
    before = llm.prefill_len + max(llm.last_kv_cache_len, default=0)
    assert before <= lengths[-1] + chunk <= cache


@pytest.mark.parametrize("axllm", [{}, {"vlm_type": "ToyVL"}])
def test_a_family_must_say_what_axllm_calls_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axllm: dict[str, Any]
) -> None:
    """Nothing said: no type for the model. Half of it said: the plugin's fault, by name."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(__import__("sys").modules, toys.MODULE, raising=False)
    toys.write_family(tmp_path / "site", axllm)
    bundle = toys.write_bundle(tmp_path / "bundle")
    expected = (ContractError, "tokenizer_type") if axllm else (UnsupportedModel, "has no type")
    with pytest.raises(expected[0], match=expected[1]):
        packaged(bundle)


def test_onnx_models_are_not_enough(onnx_bundle: Path) -> None:
    """The hint is the command that compiles."""
    with pytest.raises(BundleError, match=r"no \.axmodel files") as caught:
        packaged(onnx_bundle)
    assert "axcore build" in caught.value.hint


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(bundle: Path) -> None:
    """Oracle: the id, and the number of rows."""
    content = json.loads((bundle / "tokenizer.json").read_text())
    content["model"]["vocab"]["zz"] = VOCABULARY
    (bundle / "tokenizer.json").write_text(json.dumps(content))
    change_json(bundle / "axcore.json", files={})
    with pytest.raises(
        CheckpointError, match=f"has the id {VOCABULARY}; the embedding has {VOCABULARY} rows"
    ):
        packaged(bundle)
