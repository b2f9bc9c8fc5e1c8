"""MiniCPM-V-2: a SigLIP tower of timm and a resampler before a Llama with scaled residuals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from axcore import (
    Calibration,
    Choice,
    Component,
    Embedding,
    LlmBuildArgs,
    LlmCheckpoint,
    ModelCard,
    Port,
    Profile,
    Prompt,
    Rows,
    Shape,
    Stage,
    UsageError,
    Weight,
)

from . import layouts, preprocess, slicing
from .versions import version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from axcore import Job, Sample

    from .siglip import Tower

LANGUAGE = "llm."
EMBEDDING = "llm.model.embed_tokens.weight"
PATCH_PX = 14


@dataclass(frozen=True)
class Encoder:
    """What timm knows of a tower by its name, as config.json does not spell it out.

    Attributes:
        hidden, inner, heads: Of a block.
        depth: Blocks, the last one included.
        side: Positions along a side of the stored table.
    """

    hidden: int
    inner: int
    heads: int
    depth: int
    side: int


ENCODERS: Mapping[str, Encoder] = {
    "vit_so400m_patch14_siglip_384.webli": Encoder(1152, 4304, 16, 27, 27),
    "vit_tiny_patch14_siglip": Encoder(64, 96, 4, 4, 27),  # of fabricated checkpoints
}

_CONFIG: Mapping[str, Any] = {
    "architectures": ["MiniCPMV"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dim_model_base": 256,
    "drop_vision_last_layer": True,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "image_size": 448,
    "initializer_range": 0.1,
    "intermediate_size": 5760,
    "max_position_embeddings": 4096,
    "max_slice_nums": 9,
    "mm_use_im_start_end": True,
    "model_type": "minicpmv",
    "num_attention_heads": 36,
    "num_hidden_layers": 40,
    "num_key_value_heads": 36,
    "patch_size": PATCH_PX,
    "pretraining_tp": 1,
    "query_num": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "scale_resolution": 448,
    "slice_mode": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "vocab_size": 122753,
}

_TINY: Mapping[str, Any] = {
    "dim_model_base": 64,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "vision_encoder": "vit_tiny_patch14_siglip",
    "vocab_size": 512,
}

_FILES: Mapping[str, Mapping[str, Any]] = {
    "preprocessor_config.json": {
        "image_processor_type": "MiniCPMVImageProcessor",
        "processor_class": "MiniCPMVProcessor",
        "max_slice_nums": 9,
        "scale_resolution": 448,
        "patch_size": PATCH_PX,
        "image_feature_size": 64,
        "im_start": "<image>",
        "im_end": "</image>",
        "slice_start": "<slice>",
        "slice_end": "</slice>",
        "unk": "<unk>",
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
    }
}

TOKENS: Mapping[str, int] = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<image>": 101,
    "</image>": 102,
    "<slice>": 111,
    "</slice>": 112,
}
ROLES: Mapping[str, str] = {"user": "<用户>", "assistant": "<AI>"}  # plain text, not tokens

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=320,
        kv_cache_len=1023,
        about="64 tokens an image, and 256 for the rest of the prompt",
    )
}

_FOLD = Choice(
    ("no", "yes"),
    "write the language model as a plain Llama into llm/ and build from that, its three scales"
    " multiplied into the weights: no builder or runtime has to know them. Costs 8.6 GB of disk;"
    " scaled tensors are stored in float32",
)

_CALIBRATION = Calibration(format="Numpy", size=-1)

# Fields of config.json that a Llama has as well.
_LLAMA_FIELDS = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pretraining_tp",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)


def cards() -> list[ModelCard]:
    """Return the card of the published model."""
    return [
        ModelCard(
            id="minicpm-v-2",
            repo="openbmb/MiniCPM-V-2",
            architectures=("MiniCPMV",),
            profiles=_PROFILES,
            aliases=("minicpm-v-2.0", "minicpmv2"),
            licence="MiniCPM Model License or Apache-2.0 (the published pages disagree)",
            parameters=3_434_965_792,
            config=_CONFIG,
            tiny=_TINY,
            text_prefixes=(LANGUAGE,),
            tensors=tensors,
            choices={"fit": preprocess.FIT, "fold-scales": _FOLD},
            recognises=_recognises,
            text_model={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
            files=_FILES,
            tokens=lambda _: TOKENS,
        )
    ]


def _recognises(config: Mapping[str, Any]) -> bool:
    """The first models carry no version; later ones have another number of queries or no scale."""
    return version(config) is None and config.get("query_num") == 64 and "scale_emb" in config


# Vision ------------------------------------------------------------------------------------------


def export_vision(job: Job) -> list[Component]:
    """Describe the tower and the resampler behind it.

    Raises:
        UnsupportedProfile: The image size does not fit; the hint names the nearest that does.
    """
    from . import resampler  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    preprocess.check_size(height, width)
    grid = height // PATCH_PX, width // PATCH_PX
    tower = _tower(job, *grid)
    behind = resampler.component(
        job.text_width,
        job.config["query_num"],
        grid,
        tower.outputs[0],
        placed_queries=True,
        calibration=_CALIBRATION,
    )
    return [tower, behind]


def _tower(job: Job, rows: int, columns: int) -> Component:
    from . import siglip

    size = job.profile.height, job.profile.width
    encoder = ENCODERS[job.config["vision_encoder"]]
    tower = siglip.Tower(encoder.hidden, encoder.inner, encoder.heads, gelu="none")
    chain = [_embedding(tower, encoder.side, rows, columns)]
    for index in range(_depth(job.config)):
        keys = _block_keys(f"vpm.blocks.{index}.", encoder.hidden)
        chain.append(Stage(f"blocks.{index}", siglip.Layer(tower), keys, "block"))
    chain.append(Stage("norm", siglip.norm(tower), "vpm.norm."))

    return Component(
        "siglip",
        "siglip",
        tuple(chain),
        inputs=(Port("pixel_values", (1, 3, *size)),),
        outputs=(Port("vision_embedding", (1, rows * columns, encoder.hidden)),),
        preprocess=partial(_samples, job),
        calibration=_CALIBRATION,
    )


def _samples(job: Job, images: Sequence[Image]) -> Iterator[Sample]:
    size = job.profile.height, job.profile.width
    for image in images:
        for pixels in preprocess.samples(image, *size, job.choice("fit")):
            yield {"pixel_values": pixels}


def _embedding(tower: Tower, side: int, rows: int, columns: int) -> Stage:
    """The position table is interpolated while the weights are read."""
    from . import siglip

    down, across = siglip.interpolation(rows, side), siglip.interpolation(columns, side)
    table = Weight("vpm.pos_embed")
    keys: dict[str, str | Weight] = {
        "patch_embedding.weight": "vpm.patch_embed.proj.weight",
        "patch_embedding.bias": "vpm.patch_embed.proj.bias",
        "position": siglip.gridded(table, side, down, across),
    }
    return Stage("patch_embed", siglip.Embedding(tower, rows * columns), keys)


def _block_keys(block: str, hidden: int) -> dict[str, str | Weight]:
    """Return where a layer's parameters are in a block of timm, which packs queries to values."""
    keys: dict[str, str | Weight] = {}
    for kind in ("weight", "bias"):
        packed = Weight(f"{block}attn.qkv.{kind}")
        for index, part in enumerate("qkv"):
            rows = packed.slice(0, index * hidden, (index + 1) * hidden)
            keys[f"self_attn.{part}_proj.{kind}"] = rows
        keys[f"self_attn.out_proj.{kind}"] = f"{block}attn.proj.{kind}"
        keys |= {f"layer_norm{number}.{kind}": f"{block}norm{number}.{kind}" for number in (1, 2)}
        keys |= {f"mlp.{name}.{kind}": f"{block}mlp.{name}.{kind}" for name in ("fc1", "fc2")}
    return keys


def _depth(config: Mapping[str, Any]) -> int:
    """Blocks stored and used."""
    return ENCODERS[config["vision_encoder"]].depth - bool(config["drop_vision_last_layer"])


# Language ----------------------------------------------------------------------------------------


def embed_extract(job: Job) -> Embedding:
    """Name the embedding: rows as they are, or scaled where the model is folded."""
    shape = job.checkpoint.info(EMBEDDING).shape
    scale = float(job.config["scale_emb"])
    if job.choice("fold-scales") == "yes":
        return Embedding(EMBEDDING, shape, factor=scale)
    return Embedding(EMBEDDING, shape, scale=scale)


def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths, and a plain Llama for the builder where scales are folded."""
    folded = job.choice("fold-scales") == "yes"
    notes = slicing.notes(job.choice("fit"), job.profile.max_prompt)
    return LlmBuildArgs.of(
        job.profile,
        checkpoint=_plain_llama(job.config) if folded else None,
        notes=(_folded_note(job.config) if folded else _scales_note(job.config), *notes),
    )


def scales(config: Mapping[str, Any]) -> dict[str, float]:
    """Return what each kind of tensor is multiplied by so that a plain Llama computes the same.

    The model multiplies embedded rows, what attention and MLP add to the residual, and divides
    the state before the head. Source: MiniCPM-2B, ``MiniCPMForCausalLM``.
    """
    residual = config["scale_depth"] / math.sqrt(config["num_hidden_layers"])
    return {
        "embed_tokens": config["scale_emb"],
        "o_proj": residual,
        "down_proj": residual,
        "lm_head": config["dim_model_base"] / config["hidden_size"],
    }


def _plain_llama(config: Mapping[str, Any]) -> LlmCheckpoint:
    factors = scales(config)
    fields = {name: config[name] for name in _LLAMA_FIELDS if name in config}
    origins = {
        key.removeprefix(LANGUAGE): (key, float(factors.get(key.split(".")[-2], 1)))
        for key, _ in layouts.language(config)
    }
    # float32, so that a loader keeps what was multiplied.
    named = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}
    return LlmCheckpoint({**fields, **named}, origins)


def _scales_note(config: Mapping[str, Any]) -> str:
    factors = scales(config)
    return (
        f"the language model multiplies embedded rows by {factors['embed_tokens']}, every"
        f" attention and MLP output by {factors['o_proj']:.7f} and divides by"
        f" {1 / factors['lm_head']:g} before the head. It is not known whether the builder does"
        " the latter two, and no published runtime does the first: the embedding files hold the"
        " rows as stored. --fold-scales writes a plain Llama that needs none of it"
    )


def _folded_note(config: Mapping[str, Any]) -> str:
    return (
        f"scales are folded: build from llm/, and use the embedding files as they are. Their rows"
        f" are multiplied by {config['scale_emb']} already, which rounds once more in the bfloat16"
        " file (not in npy, f32bin or pth); rows of the vision side are not multiplied"
    )


def prepare_prompt(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Write who speaks and what, with a run of the tower for each piece of an image.

    Raises:
        UsageError: Someone speaks whom the model does not know.
    """
    from . import prompt

    preprocess.check_size(job.profile.height, job.profile.width)
    return prompt.assemble(
        job,
        _written(messages),
        prompt.nested(Rows("<unk>", job.config["query_num"])),
        partial(_samples, job),
        components=("siglip", "resampler"),
        markers={
            **dict.fromkeys(TOKENS),
            "<s>": job.config["bos_token_id"],
            "</s>": job.config["eos_token_id"],
        },
        stop=("</s>",),
    )


def _written(messages: Sequence[Mapping[str, Any]]) -> Iterator[str | Image]:
    from . import prompt

    yield "<s>"
    for message in messages:
        if (role := message["role"]) not in ROLES:
            raise UsageError(
                f"MiniCPM-V-2 knows no message of role `{role}`",
                hint=f"put it into a message of role {' or '.join(ROLES)}",
            )
        yield ROLES[role]
        yield from prompt.lines(message)
    yield ROLES["assistant"]


# Layout ------------------------------------------------------------------------------------------


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies."""
    encoder = ENCODERS[config["vision_encoder"]]
    width, queries = config["hidden_size"], config["query_num"]
    return {
        **dict(_vision(encoder, _depth(config))),
        **dict(layouts.resampler(width, encoder.hidden, queries)),
        "resampler.pos_embed": (queries, width),
        **dict(layouts.language(config)),
    }


def _vision(encoder: Encoder, depth: int) -> Iterator[tuple[str, Shape]]:
    hidden, inner = encoder.hidden, encoder.inner
    yield from layouts.linear("vpm.patch_embed.proj", hidden, 3, PATCH_PX, PATCH_PX)
    yield "vpm.pos_embed", (1, encoder.side**2, hidden)
    for index in range(depth):
        block = f"vpm.blocks.{index}."
        yield from layouts.affine(block + "norm1", hidden)
        yield from layouts.affine(block + "norm2", hidden)
        yield from layouts.linear(block + "attn.qkv", 3 * hidden, hidden)
        yield from layouts.linear(block + "attn.proj", hidden, hidden)
        yield from layouts.linear(block + "mlp.fc1", inner, hidden)
        yield from layouts.linear(block + "mlp.fc2", hidden, inner)
    yield from layouts.affine("vpm.norm", hidden)
