"""MiniCPM-V-4: SigLIP and a resampler before a Llama with stretched rotary positions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from axcore import (
    Calibration,
    Choice,
    Component,
    Control,
    Layout,
    LlmBuildArgs,
    ModelCard,
    Port,
    Prompt,
    Published,
    Rows,
    Stage,
    Vit,
    Weight,
    chatml,
    llama_tensors,
    parse,
    vit_tensors,
)

from . import configs, layouts, preprocess, slicing, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image
    from torch.nn import Module

    from axcore import Job, Sample, Shape


VERSION = 4.0
TOWER = "vpm."

_TOKENS: Mapping[str, int] = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<image>": 101,
    "</image>": 102,
    "<slice>": 111,
    "</slice>": 112,
    "<image_id>": 113,
    "</image_id>": 114,
}
STOP = ("</s>", "<|im_end|>")

_LAYOUT = Choice(
    ("plain", "strip"),
    "what the tower is fed. plain: the image as it is, positions folded into the graph. strip:"
    " the patches side by side and their position ids, as the published board script feeds them;"
    " costs one lookup in a table of 4900 positions",
)

_CALIBRATION = Calibration(format="NumpyObject", size=-1)

_CUDA_NOTE = (
    "siglip.pulsar2.json and resampler.pulsar2.json quantise on the first CUDA device, as"
    " published. Without such a device, set quant.device to cpu in both"
)
_LONGROPE_NOTE = (
    "the rotary positions are stretched (rope_scaling, longrope): each frequency is divided by a"
    " factor of its own, the slowest by 31. It is not known whether the builder does so. To check,"
    " compare the logits behind a prompt of some hundred tokens with transformers'"
    " LlamaForCausalLM made from this config.json, once as it is and once without rope_scaling:"
    " the first must agree better"
)


def card() -> ModelCard:
    """Return the card of the published model."""
    published = Published.read(versions.DATA / "minicpm-v-4", tokens=tokens)
    return ModelCard(
        id="minicpm-v-4",
        repo="openbmb/MiniCPM-V-4",
        architectures=("MiniCPMV",),
        profiles=versions.PROFILES,
        aliases=("minicpm-v-4.0", "minicpmv4"),
        licence=versions.LICENCE,
        parameters=4_059_533_040,
        choices={"fit": preprocess.FIT, "layout": _LAYOUT},
        recognises=lambda config: versions.version(config) == VERSION,
        layout=Layout(
            tensors,
            text_prefixes=("llm.",),
            text_model=versions.TEXT_MODEL,
            config=configs.V4,
        ),
        published=replace(published, tiny=_tiny(published.config)),
    )


def _tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides for a small checkpoint; it has every fourth of the rotary factors."""
    factors = {name: config["rope_scaling"][name][::4] for name in ("long_factor", "short_factor")}
    return {
        "eos_token_id": [2, 500],
        "head_dim": 32,  # not hidden / heads, as published
        "hidden_size": 256,
        "intermediate_size": 320,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rope_scaling": factors,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
        },
        "vocab_size": 512,
    }


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens of a prompt with their ids for `config`."""
    end = config["eos_token_id"][1]
    return {**_TOKENS, "<|im_end|>": end, "<|im_start|>": end + 1}


def export_vision(job: Job) -> list[Component]:
    """Describe the tower and the resampler behind it.

    Raises:
        UnsupportedProfile: The image size does not fit; the hint suggests the nearest that does.
    """
    from . import resampler  # torch is only needed from here on

    preprocess.check_size(job.profile.height, job.profile.width)
    return resampler.components(
        job,
        _stages(job),
        _ports(job),
        partial(_samples, job),
        job.config["vision_config"]["hidden_size"],
        placed_queries=False,
        calibration=_CALIBRATION,
        # Both in 16 bits, although the published configuration leaves the resampler in 8: attention
        # spreads over up to 1024 keys, and in steps of 1/255 a weight of 1/1024 is nothing. So
        # another vendor's 8-bit build of it fell to a cosine of 0.55.
        build_options=_build_options(job),
    )


def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths, and notes on the build."""
    scaling = job.config.get("rope_scaling") or {}
    notes = [_CUDA_NOTE, *slicing.notes(job.choice("fit"), job.profile.max_prompt)]
    if scaling.get("rope_type") == "longrope":
        notes.append(_LONGROPE_NOTE)
    return LlmBuildArgs.of(job.profile, notes=tuple(notes))


def prepare_prompt(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Write the messages as ChatML, with a run of the tower for each piece of an image."""
    from . import prompt

    preprocess.check_size(job.profile.height, job.profile.width)
    return prompt.assemble(
        job,
        [Control("<s>"), *chatml(messages, prompt.lines)],
        prompt.numbered(Rows("<unk>", job.config["query_num"])),
        partial(_samples, job),
        components=("siglip", "resampler"),
        markers={**dict.fromkeys(tokens(job.config)), "<s>": job.config["bos_token_id"]},
        stop=STOP,
    )


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies."""
    vision = config["vision_config"]
    return {
        **vit_tensors(TOWER, _tower(config)),
        **layouts.resampler(config["hidden_size"], vision["hidden_size"], config["query_num"]),
        **llama_tensors(config, "llm."),
    }


def _tower(config: Mapping[str, Any]) -> Vit:
    """Return the tower with the layers that are stored and used."""
    tower = parse(configs.Siglip, config["vision_config"])
    dropped = bool(config["drop_vision_last_layer"])
    return replace(tower, num_hidden_layers=tower.num_hidden_layers - dropped)


def _stages(job: Job) -> Iterator[Stage]:
    from axcore import VitLayer, vit_norm

    tower = _tower(job.config)
    yield _embedding(job, tower)
    for index in range(tower.num_hidden_layers):
        keys = f"{TOWER}encoder.layers.{index}."
        yield Stage(f"layers.{index}", VitLayer(tower), keys, "layer")
    yield Stage("post_layernorm", vit_norm(tower), TOWER + "post_layernorm.")


def _is_strip(job: Job) -> bool:
    return job.choice("layout") == "strip"


def _embedding(job: Job, tower: Vit) -> Stage:
    """Return the stage that adds positions: picked for the grid, or looked up by the ids fed."""
    from axcore import VitEmbedding, gridded, selection

    from . import siglip

    (rows, columns), side = preprocess.grid(job), tower.side
    position = Weight(TOWER + "embeddings.position_embedding.weight")
    module: Module
    if _is_strip(job):
        module = siglip.PlacedEmbedding(tower, side**2)
    else:
        module = VitEmbedding(tower, rows * columns)
        maps = (selection(preprocess.buckets(n, side), side) for n in (rows, columns))
        position = gridded(position, side, *maps)
    keys = siglip.embedding_keys(TOWER + "embeddings.patch_embedding.", position)
    return Stage("embeddings", module, keys)


def _ports(job: Job) -> tuple[Port, ...]:
    height, width = job.profile.height, job.profile.width
    if not _is_strip(job):
        return (Port("pixel_values", (1, 3, height, width)),)
    patch, patches = preprocess.PATCH_PX, prod(preprocess.grid(job))
    return (
        Port("all_pixel_values", (1, 3, patch, patch * patches)),
        Port("position_ids", (1, patches), "int32"),
    )


def _samples(job: Job, images: Sequence[Image]) -> Iterator[Sample]:
    side = _tower(job.config).side
    ids = preprocess.position_ids(*preprocess.grid(job), side)
    for pixels in preprocess.pieces(job, images):
        if _is_strip(job):
            yield {"all_pixel_values": preprocess.strip(pixels), "position_ids": ids}
        else:
            yield {"pixel_values": pixels}


def _build_options(job: Job) -> dict[str, dict[str, Any]]:
    """Return the published settings that differ from those of other models."""
    return {
        "pulsar2": {
            "target_hardware": job.target,
            "quant": {
                "precision_analysis_mode": "NPUBackend",
                "transformer_opt_level": 1,
                "device": "cuda:0",
            },
            "compiler": {"check": 0},
        }
    }
