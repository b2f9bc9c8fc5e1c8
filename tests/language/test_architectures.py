"""Every listed architecture gives the logits of transformers' class; no other is taken."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from axcore import Job, Layout, ModelCard, Options, Profile, UnsupportedModel
from axcore.checkpoint import Checkpoint
from axcore.language.architectures import listed
from axcore.language.decoder import default_decoder
from axcore.language.embedding import default_embedding

from .decoding import Host, answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

DEPTH, VOCABULARY = 4, 48
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PROFILE = Profile(height=28, width=28, prefill_len=32, kv_cache_len=63)
LENGTH, WINDOW = 12, 5
LINEAR: Mapping[str, Any] = {
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def three_axes(*sections: int, **others: Any) -> dict[str, Any]:
    """Return a setting of positions with three axes."""
    scaling = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": {**scaling, **others}}


@dataclass(frozen=True)
class Case:
    """A config of an architecture: transformers' class of it, and values beside `SIZES`."""

    config: str
    values: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = (None,) * DEPTH
    axes: int = 1

    @property
    def kind(self) -> str:
        """Its ``model_type``."""
        return str(getattr(transformers, self.config).model_type)


SLIDES: Mapping[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW}
CASES = {
    "llama": Case("LlamaConfig"),
    "llama, biases": Case("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Case("MistralConfig", {"sliding_window": WINDOW}, (WINDOW,) * DEPTH),
    "mistral, wide": Case("MistralConfig", {"sliding_window": 64}),
    "qwen2": Case("Qwen2Config"),
    "qwen2, window": Case(
        "Qwen2Config", {**SLIDES, "max_window_layers": 2}, (None, None, WINDOW, WINDOW)
    ),
    "qwen3": Case("Qwen3Config", {"head_dim": 8}),
    "qwen2.5-vl": Case("Qwen2_5_VLTextConfig", three_axes(1, 0, 1) | {"head_dim": 4}, axes=3),
    "qwen3-vl": Case(
        "Qwen3VLTextConfig",
        {"head_dim": 12, **three_axes(3, 2, 1, mrope_interleaved=True)},
        axes=3,
    ),
    "qwen3.5": Case(
        "Qwen3_5TextConfig",
        {
            "head_dim": 24,
            **LINEAR,
            **three_axes(3, 2, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
        },
        axes=3,
    ),
    "qwen3.5, one axis": Case(
        "Qwen3_5TextConfig", {"head_dim": 8, **LINEAR, "partial_rotary_factor": 0.25}
    ),
    "ernie4.5": Case("Ernie4_5Config", {"head_dim": 8, "use_bias": True}),
    "smollm3": Case("SmolLM3Config"),
    "smollm3, window": Case(
        "SmolLM3Config", {**SLIDES, "no_rope_layers": [1, 0, 1, 1]}, (None, WINDOW, None, None)
    ),
    "granite": Case(
        "GraniteConfig",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.5,
        },
    ),
    "helium": Case("HeliumConfig", {"head_dim": 4}),
    "gemma": Case("GemmaConfig", {"head_dim": 8, "hidden_act": "gelu"}),
    "gemma2": Case(
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 9},
        (WINDOW, None) * 2,
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 9,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 3,
            "final_logit_softcapping": 3.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        (WINDOW, WINDOW, None, WINDOW),
    ),
    "lfm2": Case("Lfm2Config", {"full_attn_idxs": [2], "conv_bias": True, "block_multiple_of": 8}),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost twenty times what these small matrices do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Tiny:
    """A tiny model of transformers with random weights, and a job of its checkpoint."""

    body: Any
    head: Tensor
    cap: float | None
    divisor: float
    job: Job

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """Return the logits of every token as transformers has them."""
        with torch.no_grad():
            position_ids = places[:, None] if len(places) > 1 else places
            made = self.body(input_ids=ids[None], position_ids=position_ids, use_cache=False)
            logits = made.last_hidden_state[0] @ self.head.T / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def tiny(case: Case, folder: Path, **changes: Any) -> Tiny:
    """Return a model whose norms and biases matter too, saved with its whole config."""
    torch.manual_seed(7)
    config = getattr(transformers, case.config)(**{**SIZES, **case.values})
    config._attn_implementation = "eager"
    body: Any = transformers.AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    body.eval()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    head = torch.randn(VOCABULARY, SIZES["hidden_size"]) * 0.3
    tensors = {f"model.{name}": value for name, value in body.state_dict().items()}
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    content = {**json.loads(config.to_json_string(use_diff=False)), **changes}
    (folder / "config.json").write_text(json.dumps(content))
    card = ModelCard("toy", "a/toy", ("Toy",), {"image": PROFILE}, layout=Layout())
    job = Job(card, "toy", Checkpoint.open(folder), "image", PROFILE, Options())
    cap, divisor = (
        getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling")
    )
    return Tiny(body, head, cap, divisor or 1, job)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """At once, in chunks with padding behind them, and from a single token on.

    Rows of positions differ where there are three. The layers run in a host of the tests, see
    `Host`. Oracle: transformers' class.
    """
    case = CASES[name]
    model = tiny(case, tmp_path)
    embedding = default_embedding(model.job)
    decoder = default_decoder(model.job, embedding)
    assert decoder.position_rows == case.axes
    assert tuple(spec.window for spec in decoder.specs) == case.windows
    ids = torch.randint(3, VOCABULARY, (LENGTH,))
    step = torch.tensor([[1], [2], [3]][: case.axes])
    places = torch.arange(LENGTH)[None] * step // step.max()
    expected = model.logits(ids, places)
    table = model.body.get_input_embeddings().weight.detach()
    rows = table[ids] * embedding.scale
    for padding, chunks in ((0, [LENGTH]), (3, [6, 1, 3, 1, 1]), (0, [1, 1, 10])):
        made = answers(Host(decoder, padding), rows, places, chunks)
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", listed().architectures)
def test_every_architecture_has_a_case(kind: str) -> None:
    """And the class that it names is the one it is tested against. Oracle: transformers."""
    case = next(case for case in CASES.values() if case.kind == kind)
    oracle = getattr(transformers, listed().architectures[kind].oracle)
    assert issubclass(getattr(transformers, case.config), oracle.config_class)


@pytest.mark.parametrize("kind", listed().architectures)
def test_what_a_config_leaves_out_is_what_transformers_fills_in(kind: str) -> None:
    """Oracle: the attributes of transformers' config without arguments."""
    config = transformers.AutoConfig.for_model(kind)
    rotary = config.rope_parameters
    given = {
        "block_ff_dim": config.intermediate_size if kind == "lfm2" else None,
        "full_attention_interval": 4,  # counted below
        "rope_theta": rotary.get("full_attention", rotary).get("rope_theta"),
        "rope_local_base_freq": rotary.get("sliding_attention", {}).get("rope_theta"),
        "partial_rotary_factor": rotary.get("partial_rotary_factor"),
    }
    for name, value in listed().architectures[kind].defaults.items():
        if name in ("full_attention_interval", "sliding_window_pattern"):
            types = config.layer_types
            assert types.index("full_attention") + 1 == value
        elif name == "use_sliding_window" or getattr(config, name, None) is not None:
            assert getattr(config, name) == value, name
        elif name == "sliding_window":
            assert getattr(type(config), name) == value
        else:
            assert given[name] == value, name


@pytest.mark.parametrize("kind", ["cohere", "olmo", "stablelm", "starcoder2", "phi3", "glm", None])
def test_other_architectures_are_refused_by_name(tmp_path: Path, kind: str | None) -> None:
    """Whatever their configs hold. Oracle: they are not listed."""
    model = tiny(CASES["llama"], tmp_path, model_type=kind)
    with pytest.raises(UnsupportedModel, match=f"the architecture '?{kind}'?;") as caught:
        default_decoder(model.job, default_embedding(model.job))
    assert "toolchain" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "changes", "evidence"),
    [
        ("llama", {"sliding_window": 4}, "`sliding_window` 4"),
        ("llama", {"new_trick": "on"}, "`new_trick` 'on'"),
        ("llama", {"rope_parameters": {"beta": 2.0}}, "`rope_parameters.beta` 2.0"),
        ("llama", {"no_rope_layers": [1, 1, 1, 0]}, "`no_rope_layers`"),
        ("llama", {"layer_types": ["mamba"] * 4}, "layers of the type 'mamba'"),
        ("llama", {"layer_types": ["conv"] * 4}, "layers of the type 'conv'"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "and no window"),
        ("qwen2.5-vl", three_axes(1, 0, 1, mrope_interleaved=True), "`mrope_interleaved` True"),
        ("qwen3-vl", three_axes(3, 2, 1, mrope_interleaved=False), "`mrope_interleaved` False"),
        ("qwen3-vl", three_axes(3, 2, 2), "does not make up the 6 pairs"),
        ("qwen3.5", {"attn_output_gate": False}, "`attn_output_gate` False"),
        ("qwen3.5", {"linear_num_value_heads": 5}, "5 heads of values for 2 of keys"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` 50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
        ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "`rope_parameters.rope_theta`"),
        ("granite", {"embedding_scale": 2}, "`embedding_scale` 2"),
    ],
)
def test_a_setting_that_would_change_the_mathematics_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], evidence: str
) -> None:
    """By name. Oracle: the change made to a config that is accepted."""
    model = tiny(CASES[name], tmp_path, **changes)
    with pytest.raises(UnsupportedModel) as caught:
        default_decoder(model.job, default_embedding(model.job))
    assert evidence in caught.value.message


def test_layers_are_found_beside_the_embedding_that_the_hook_names(tmp_path: Path) -> None:
    """Under a name that no default looks for. Oracle: the same model under the usual names."""
    model = tiny(CASES["llama"], tmp_path)
    usual = default_embedding(model.job)
    tensors = {
        key.replace("model.embed_tokens", "text.body.words.table").replace("model.", "text.body.")
        if key != "lm_head.weight"
        else key: model.job.checkpoint.tensor(key)
        for key in model.job.checkpoint.tensors
    }
    other = tmp_path / "other"
    other.mkdir()
    save_file(tensors, other / "model.safetensors")
    (other / "config.json").write_text((tmp_path / "config.json").read_text())
    job = Job(model.job.card, "toy", Checkpoint.open(other), "image", PROFILE, Options())
    key = "text.body.words.table.weight"
    decoder = default_decoder(job, type(usual)(key, usual.shape))
    ids = torch.arange(3, 9)
    rows = model.body.get_input_embeddings().weight.detach()[ids]
    places = torch.arange(6)[None]
    made = answers(Host(decoder), rows, places, [6])
    torch.testing.assert_close(made, model.logits(ids, places), atol=1e-4, rtol=1e-4)
