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
    Control,
    Embedding,
    Layout,
    LlmBuildArgs,
    LlmCheckpoint,
    ModelCard,
    Port,
    Prompt,
    Published,
    Rows,
    Stage,
    UsageError,
    Vit,
    Weight,
    affine_tensors,
    llama_tensors,
)

from . import configs, layouts, preprocess, slicing, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from axcore import Job, Sample, Shape


LANGUAGE = "llm."
EMBEDDING = "llm.model.embed_tokens.weight"


@dataclass(frozen=True)
class Encoder:
    """Dimensions of a tower, which timm derives from its name; ``config.json`` has the name alone.

    Attributes:
        hidden, inner, heads: Widths of state and MLP, and attention heads, of a block.
        depth: Number of blocks, including the last.
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

_FOLD = Choice(
    ("no", "yes"),
    "write the language model as a plain Llama into llm/ and build from that, its three scales"
    " multiplied into the weights: no builder or runtime has to know them. Costs 8.6 GB of disk;"
    " scaled tensors are stored in float32",
)

_CALIBRATION = Calibration(format="Numpy", size=-1)

# Fields of config.json that a plain Llama has too.
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


def card() -> ModelCard:
    """Return the card of the published model."""
    return ModelCard(
        id="minicpm-v-2",
        repo="openbmb/MiniCPM-V-2",
        architectures=("MiniCPMV",),
        profiles=versions.PROFILES,
        aliases=("minicpm-v-2.0", "minicpmv2"),
        licence=versions.LICENCE,
        parameters=3_434_965_792,
        choices={"fit": preprocess.FIT, "fold-scales": _FOLD},
        recognises=_recognises,
        layout=Layout(
            tensors,
            text_prefixes=(LANGUAGE,),
            text_model=versions.TEXT_MODEL,
            config=configs.V2,
        ),
        published=Published.read(
            versions.DATA / "minicpm-v-2", tiny=_TINY, tokens=lambda _: TOKENS
        ),
    )


def _recognises(config: Mapping[str, Any]) -> bool:
    """The first models have no version; later ones have another number of queries or no scale."""
    return (
        versions.version(config) is None and config.get("query_num") == 64 and "scale_emb" in config
    )


# Vision ------------------------------------------------------------------------------------------


def export_vision(job: Job) -> list[Component]:
    """Describe the tower and the resampler behind it.

    Raises:
        UnsupportedProfile: The image size does not fit; the hint suggests the nearest that does.
    """
    from . import resampler  # torch is only needed from here on

    height, width = job.profile.height, job.profile.width
    preprocess.check_size(height, width)
    return resampler.components(
        job,
        _stages(job.config, *preprocess.grid(job)),
        (Port("pixel_values", (1, 3, height, width)),),
        partial(_samples, job),
        ENCODERS[job.config["vision_encoder"]].hidden,
        placed_queries=True,
        calibration=_CALIBRATION,
    )


def _stages(config: Mapping[str, Any], rows: int, columns: int) -> Iterator[Stage]:
    from axcore import VitLayer, vit_norm

    encoder = ENCODERS[config["vision_encoder"]]
    tower = Vit(
        encoder.hidden, encoder.inner, _depth(config), encoder.heads, preprocess.PATCH_PX,
        num_patches=encoder.side**2, hidden_act="gelu",
    )  # fmt: skip
    yield _embedding(tower, encoder.side, rows, columns)
    for index in range(tower.num_hidden_layers):
        keys = _block_keys(f"vpm.blocks.{index}.", encoder.hidden)
        yield Stage(f"blocks.{index}", VitLayer(tower), keys, "block")
    yield Stage("norm", vit_norm(tower), "vpm.norm.")


def _samples(job: Job, images: Sequence[Image]) -> Iterator[Sample]:
    for pixels in preprocess.pieces(job, images):
        yield {"pixel_values": pixels}


def _embedding(tower: Vit, side: int, rows: int, columns: int) -> Stage:
    """The position table is interpolated while the weights are read."""
    from axcore import VitEmbedding, gridded, interpolation

    from . import siglip

    maps = (interpolation(count, side, antialias=True) for count in (rows, columns))
    position = gridded(Weight("vpm.pos_embed"), side, *maps)
    keys = siglip.embedding_keys("vpm.patch_embed.proj.", position)
    return Stage("patch_embed", VitEmbedding(tower, rows * columns), keys)


def _block_keys(block: str, hidden: int) -> dict[str, str | Weight]:
    """Return the origin of a layer's parameters in a block of timm, which packs q, k and v."""
    from . import siglip

    packed = siglip.unpacked(f"{block}attn.qkv.", hidden)
    keys = {f"self_attn.{name}": weight for name, weight in packed.items()}
    for kind in ("weight", "bias"):
        keys[f"self_attn.out_proj.{kind}"] = f"{block}attn.proj.{kind}"
        keys |= {f"layer_norm{number}.{kind}": f"{block}norm{number}.{kind}" for number in (1, 2)}
        keys |= {f"mlp.{name}.{kind}": f"{block}mlp.{name}.{kind}" for name in ("fc1", "fc2")}
    return keys


def _depth(config: Mapping[str, Any]) -> int:
    """Blocks stored and used."""
    return ENCODERS[config["vision_encoder"]].depth - bool(config["drop_vision_last_layer"])


# Language ----------------------------------------------------------------------------------------


def embed_extract(job: Job) -> Embedding:
    """Describe the embedding: scaled when it is looked up, or when it is written if folded."""
    shape = job.checkpoint.info(EMBEDDING).shape
    scale = float(job.config["scale_emb"])
    if job.choice("fold-scales") == "yes":
        return Embedding(EMBEDDING, shape, factor=scale)
    return Embedding(EMBEDDING, shape, scale=scale)


def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths, and a plain Llama for the builder if scales are folded."""
    folded = job.choice("fold-scales") == "yes"
    notes = slicing.notes(job.choice("fit"), job.profile.max_prompt)
    return LlmBuildArgs.of(
        job.profile,
        checkpoint=_plain_llama(job.config) if folded else None,
        notes=(_folded_note(job.config) if folded else _scales_note(job.config), *notes),
    )


def scales(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the factor of each kind of tensor with which a plain Llama computes the same.

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
        for key in llama_tensors(config, LANGUAGE)
    }
    # float32, so that loaders keep the precision of multiplied tensors.
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
    """Write roles and contents as plain text, with a run of the tower for each piece of an image.

    Raises:
        UsageError: A message has a role that the model does not know.
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


def _written(messages: Sequence[Mapping[str, Any]]) -> Iterator[str | Control | Image]:
    from . import prompt

    yield Control("<s>")
    for message in messages:
        if (role := str(message.get("role"))) not in ROLES:
            raise UsageError(
                f"MiniCPM-V-2 does not support messages of role `{role}`",
                hint=f"put it into a message of role {' or '.join(ROLES)}",
            )
        content = prompt.lines(message)
        if role == "user":
            _check_said(content)
        yield Control(ROLES[role])
        yield from content
    yield Control(ROLES["assistant"])


def _check_said(content: Sequence[str | Control | Image]) -> None:
    """Refuse what the model could not tell from the beginning of somebody's turn."""
    for name in ROLES.values():
        if any(isinstance(part, str) and name in part for part in content):
            raise UsageError(
                f"a message contains `{name}`, with which MiniCPM-V-2 begins a turn, as plain text",
                hint="write it in another way; --raw-prompt, or `axcore.Control` in place of the"
                " text, lets it begin a turn",
            )


# Layout ------------------------------------------------------------------------------------------


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies.

    Raises:
        ValueError: The tower is not known.
    """
    if config["vision_encoder"] not in ENCODERS:
        named = config["vision_encoder"][:80]
        raise ValueError(f"vision_encoder: {named!a} is not one of {', '.join(ENCODERS)}")
    encoder = ENCODERS[config["vision_encoder"]]
    width, queries = config["hidden_size"], config["query_num"]
    return {
        **_vision(encoder, _depth(config)),
        **layouts.resampler(width, encoder.hidden, queries),
        "resampler.pos_embed": (queries, width),
        **llama_tensors(config, LANGUAGE),
    }


def _vision(encoder: Encoder, depth: int) -> dict[str, Shape]:
    hidden, inner, patch = encoder.hidden, encoder.inner, preprocess.PATCH_PX
    shapes: dict[str, Shape] = {
        **affine_tensors("vpm.patch_embed.proj", hidden, 3, patch, patch),
        "vpm.pos_embed": (1, encoder.side**2, hidden),
    }
    for index in range(depth):
        block = f"vpm.blocks.{index}."
        shapes |= {
            **affine_tensors(block + "norm1", hidden),
            **affine_tensors(block + "norm2", hidden),
            **affine_tensors(block + "attn.qkv", 3 * hidden, hidden),
            **affine_tensors(block + "attn.proj", hidden, hidden),
            **affine_tensors(block + "mlp.fc1", inner, hidden),
            **affine_tensors(block + "mlp.fc2", hidden, inner),
        }
    return {**shapes, **affine_tensors("vpm.norm", hidden)}
