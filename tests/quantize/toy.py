"""A made-up family with the three shapes in which checkpoints hold a language model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from axcore import (
    Component,
    Layout,
    ModelCard,
    Port,
    Profile,
    Published,
    Stage,
    hookimpl,
    llama_tensors,
)  # fmt: skip

if TYPE_CHECKING:
    from pathlib import Path

    from axcore import Job, Shape

HIDDEN, INNER, LAYERS, VOCABULARY = 64, 128, 2, 300
TEXT: Mapping[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 1.0,
    "original_max_position_embeddings": 1024,
    "short_factor": [1.5] * 8,
    "long_factor": [1.5] * 8,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "flat": {
        **TEXT,
        "architectures": ["ToyFlat"],
        "model_type": "toy",
        "auto_map": {"AutoConfig": "toy.Config"},
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {"width": HIDDEN},
    },
    "prefixed": {
        **TEXT,
        "architectures": ["ToyPrefixed"],
        "model_type": "toy",
        "rope_scaling": LONGROPE,
        "slice_config": {"most": 9},
    },
    "nested": {
        "architectures": ["ToyNested"],
        "model_type": "toy",
        "llm_config": {**TEXT, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    },
}
BODIES = {"flat": "model.", "prefixed": "llm.model.", "nested": "language_model.model."}
TEXT_MODELS: Mapping[str, Mapping[str, Any]] = {
    "flat": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_scaling": None},
    "prefixed": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "nested": {},
}


@hookimpl
def model_cards() -> list[ModelCard]:
    return [
        ModelCard(
            id=f"toy-{name}",
            repo=f"toys/Toy-{name}",
            architectures=tuple(config["architectures"]),
            profiles={"image": Profile(8, 8, prefill_len=64, kv_cache_len=127)},
            layout=Layout(
                lambda config, name=name: tensors(name),  # type: ignore[misc]
                {"model.": ("model.language_model.", "model.")} if name == "flat" else {},
                text_prefixes=(BODIES[name].removesuffix("model.") or "model.",),
                text_model=TEXT_MODELS[name],
            ),
            published=Published(config),
        )
        for name, config in CONFIGS.items()
    ]


@hookimpl
def export_vision(job: Job) -> list[Component]:
    with torch.device("meta"):
        module = nn.Linear(8, HIDDEN)
    return [
        Component(
            "vision",
            "toy_vision",
            (Stage("projector", module, "visual."),),
            (Port("patches", (1, 8, 8)),),
            (Port("tokens", (1, 8, HIDDEN)),),
        )
    ]


def tensors(name: str) -> dict[str, Shape]:
    """Return the shape of every tensor."""
    language = llama_tensors(
        {**TEXT, "tie_word_embeddings": name == "flat"}, BODIES[name].removesuffix("model."),
        qkv_bias=name == "flat", qk_norm=name == "nested",
    )  # fmt: skip
    return {"visual.weight": (HIDDEN, 8), "visual.bias": (HIDDEN,), **language}


def weights(name: str) -> dict[str, Tensor]:
    """Return random tensors by their key on disk, large enough in value to show mistakes."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for key, shape in tensors(name).items():
        spread = 0.2 if len(shape) == 1 else shape[-1] ** -0.5
        centre = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
        on_disk = key.replace("model.", "model.language_model.", 1) if name == "flat" else key
        found[on_disk] = centre + spread * torch.randn(shape, generator=generator)
    return found


def write(name: str, folder: Path) -> Path:
    """Write a checkpoint with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    (folder / "modeling_toy.py").write_text("raise SystemExit('code of a repository was run')\n")
    (folder / "README.md").write_text("A toy.\n")
    save_file(weights(name), folder / "model.safetensors")
    words = {f"<{i}>": i for i in range(256)} | {"the": 256, "and": 257, "of": 258, "[UNK]": 259}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    # What a repository may say to have its own code run.
    own_code = {"auto_map": {"AutoTokenizer": ["modeling_toy.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own_code))
    return folder
