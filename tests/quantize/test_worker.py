"""What the worker computes, but for gptqmodel's own part."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from axcore.quantization import worker

from . import toy

if TYPE_CHECKING:
    from pathlib import Path


@settings(max_examples=20)
@given(
    bits=st.sampled_from([4, 8]),
    groups=st.integers(1, 3),
    outputs=st.sampled_from([8, 16, 40]),
    seed=st.integers(0, 1000),
)
def test_packed_weights_are_read_as_documented(
    pack: Any, bits: int, groups: int, outputs: int, seed: int
) -> None:
    """Oracle: every number rounded to the nearest level of its group by its own division."""
    group = 16
    weight = np.random.default_rng(seed).normal(size=(outputs, groups * group)).astype(np.float32)
    packed = pack(weight, bits, group)
    found = worker.dequantised(**{k: torch.from_numpy(v) for k, v in packed.items()}, bits=bits)
    blocks = weight.reshape(outputs, groups, group)
    top = 2 ** (bits - 1)
    scales = (np.abs(blocks).max(-1, keepdims=True) / (top - 1)).astype(np.float16)
    scales = scales.astype(np.float32)
    expected = np.clip(np.rint(blocks / scales), -top, top - 1) * scales
    np.testing.assert_array_equal(found.numpy(), expected.reshape(weight.shape))


def test_reordered_groups_are_followed() -> None:
    """Each input takes scale and zero of the group that `g_idx` names. Oracle: by hand."""
    levels = [1, 2, 3, 4, 5, 6, 7, 15]
    word = sum(level << (4 * i) for i, level in enumerate(levels)) - (1 << 32)
    qweight = torch.full((1, 8), word, dtype=torch.int32)
    qzeros = torch.tensor([[0x00000000], [0x77777777]], dtype=torch.int32)
    scales = torch.tensor([[1.0], [0.5]], dtype=torch.float16).expand(2, 8)
    g_idx = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0], dtype=torch.int32)
    weight = worker.dequantised(qweight, qzeros, scales, g_idx, 4)
    assert weight[3].tolist() == [-3.5, -3.0, 2.0, 3.0, -1.5, -1.0, 6.0, 14.0]


@given(st.lists(st.text(max_size=400), max_size=12))
def test_sequences_hold_the_text_in_order(texts: list[str]) -> None:
    """Nothing is lost but a rest of less than 16 tokens. Oracle: the bytes themselves."""
    found = worker.sequences(texts, lambda text: list(text.encode()), 512)
    stream = "".join(text + "\n\n" for text in texts).encode()
    joined = bytes(token for row in found for token in row)
    assert stream.startswith(joined)
    assert len(stream) - len(joined) < 16
    assert all(16 <= len(row) <= 512 for row in found)
    assert worker.sequences(texts, lambda text: list(text.encode()), 1) == found[:1]


def test_the_tokenizer_of_the_folder_is_used(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Without running code of the repository. Oracle: the toy's list of words; without, bytes."""
    assert worker.encoder(checkpoints["flat"])("the and of what") == [256, 257, 258, 259]
    assert worker.encoder(tmp_path)("the") == [116, 104, 101]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small Llama of transformers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields = {key: value for key, value in toy.TEXT.items() if not key.endswith("dtype")}
    model: Any = LlamaForCausalLM(LlamaConfig(**fields))
    return model.eval()


def test_the_loss_is_that_of_transformers(llama: Any) -> None:
    """Of sequences of unequal length. Oracle: the loss that the class returns, by its tokens."""
    rows = [list(range(3, 40)), list(range(100, 120))]
    behaviour = worker.observe(llama, rows)
    with torch.no_grad():
        tokens = [torch.tensor([row]) for row in rows]
        losses = [float(llama(row, labels=row).loss) for row in tokens]
        state = llama.model(tokens[1]).last_hidden_state[0, -1]
    assert behaviour.loss == pytest.approx((36 * losses[0] + 19 * losses[1]) / 55, rel=1e-5)
    torch.testing.assert_close(behaviour.states[1], state)


def test_two_behaviours_are_compared() -> None:
    """Oracle: exp(2), exp(3), and the cosines of 45 and 0 degrees."""
    before = worker.Behaviour(2.0, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    after = worker.Behaviour(3.0, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    found = worker.compare(before, after)
    assert found["perplexity_before"] == pytest.approx(np.exp(2))
    assert found["perplexity_after"] == pytest.approx(np.exp(3))
    assert found["cosine_min"] == pytest.approx(0.5**0.5)
    assert found["cosine_mean"] == pytest.approx((0.5**0.5 + 1) / 2)


def test_a_model_takes_the_weights_of_the_files(llama: Any, pack: Any, tmp_path: Path) -> None:
    """Named ones alone, and the worst is named. Oracle: the stand-in packs; one is packed wrong."""
    llama = copy.deepcopy(llama)
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.k_proj"]
    before = {name: llama.get_submodule(name).weight.clone() for name in names}
    other = llama.model.layers[0].mlp.down_proj.weight.clone()
    tensors = {}
    for name, factor in zip(names, (1, 2), strict=True):
        weight = factor * before[name].detach().numpy()
        for part, array in pack(weight, 8, 32).items():
            tensors[f"{name}.{part}"] = torch.from_numpy(array)
    save_file(tensors, tmp_path / "model.safetensors")
    found = worker.restore(llama, tmp_path, 8)
    up = llama.get_submodule(names[0]).weight
    torch.testing.assert_close(up, before[names[0]], rtol=0, atol=1e-3)
    assert not torch.equal(up, before[names[0]])
    assert torch.equal(llama.model.layers[0].mlp.down_proj.weight, other)
    assert found["worst_weight"] == names[1]
    assert found["worst_weight_error"] == pytest.approx(1, abs=0.01)  # twice the weight
