"""MiniCPM-V-4: SigLIP and a resampler before a Llama with stretched rotary positions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from axcore import (
    Calibration,
    Choice,
    Component,
    LlmBuildArgs,
    ModelCard,
    Port,
    Profile,
    Prompt,
    Rows,
    Shape,
    Stage,
    Weight,
)

from . import layouts, preprocess, slicing
from .versions import version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from PIL.Image import Image

    from axcore import Job, Sample

    from .siglip import Tower

VERSION = 4.0
TOWER = "vpm."

# `short_factor` and `long_factor` of the rotary positions.
_STRETCH = (
    0.9977997200264581, 1.014658295992452, 1.0349680404997148, 1.059429246056193,
    1.0888815016813513, 1.1243301355211495, 1.166977103606075, 1.2182568066927284,
    1.2798772354275727, 1.3538666751582975, 1.4426259039919596, 1.5489853358570191,
    1.6762658237220625, 1.8283407612492941, 2.0096956085876183, 2.225478927469756,
    2.481536379650452, 2.784415934557119, 3.1413289096347365, 3.560047844772632, 4.048719380066383,
    4.615569542115128, 5.2684819496549835, 6.014438591970396, 6.858830049237097, 7.804668263503327,
    8.851768731513417, 9.99600492938444, 11.228766118181639, 12.536757560834843, 13.902257701387796,
    15.303885189125953, 16.717837610115794, 18.119465097853947, 19.484965238406907,
    20.792956681060105, 22.02571786985731, 23.16995406772833, 24.217054535738416, 25.16289275000465,
    26.007284207271347, 26.753240849586767, 27.40615325712662, 27.973003419175363,
    28.461674954469114, 28.880393889607006, 29.237306864684626, 29.540186419591297,
    29.79624387177199, 30.01202719065413, 30.193382037992453, 30.34545697551969, 30.47273746338473,
    30.579096895249787, 30.66785612408345, 30.741845563814174, 30.80346599254902, 30.85474569563567,
    30.897392663720595, 30.932841297560394, 30.962293553185553, 30.986754758742034,
    31.007064503249293, 31.02392307921529,
)  # fmt: skip

_CONFIG: Mapping[str, Any] = {
    "architectures": ["MiniCPMV"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "batch_vision_input": True,
    "bos_token_id": 1,
    "drop_vision_last_layer": False,
    "eos_token_id": [2, 73440],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "image_size": 448,
    "initializer_range": 0.1,
    "intermediate_size": 10240,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "model_type": "minicpmv",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "patch_size": 14,
    "pretraining_tp": 1,
    "query_num": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "factor": 1.0,
        "long_factor": list(_STRETCH),
        "original_max_position_embeddings": 32786,  # sic
        "rope_type": "longrope",
        "short_factor": list(_STRETCH),
    },
    "rope_theta": 10000.0,
    "slice_config": {
        "max_slice_nums": 9,
        "model_type": "minicpmv",
        "patch_size": 14,
        "scale_resolution": 448,
    },
    "slice_mode": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_image_id": True,
    "version": VERSION,
    "vision_batch_size": 16,
    "vision_config": {
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "vocab_size": 73448,
}

_TINY: Mapping[str, Any] = {
    "eos_token_id": [2, 500],
    "head_dim": 32,  # not hidden / heads, as published
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rope_scaling": {"long_factor": list(_STRETCH[::4]), "short_factor": list(_STRETCH[::4])},
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
    },
    "vocab_size": 512,
}

_FILES: Mapping[str, Mapping[str, Any]] = {
    "generation_config.json": {
        "_from_model_config": True,
        "bos_token_id": 1,
        "eos_token_id": [2, 73440],
        "pad_token_id": 2,
        "transformers_version": "4.51.0",
    },
    "preprocessor_config.json": {
        "image_processor_type": "MiniCPMVImageProcessor",
        "processor_class": "MiniCPMVProcessor",
        "max_slice_nums": 9,
        "scale_resolution": 448,
        "patch_size": 14,
        "use_image_id": True,
        "image_feature_size": 64,
        "im_start": "<image>",
        "im_end": "</image>",
        "slice_start": "<slice>",
        "slice_end": "</slice>",
        "unk": "<unk>",
        "im_id_start": "<image_id>",
        "im_id_end": "</image_id>",
        "slice_mode": True,
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
        "version": 3.0,
    },
}

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

_PROFILES: Mapping[str, Profile] = {
    "image": Profile(
        height=448,
        width=448,
        prefill_len=320,
        kv_cache_len=1023,
        about="64 tokens an image, and 256 for the rest of the prompt",
    )
}

_CALIBRATION = Calibration(format="NumpyObject", size=-1)

_CUDA_NOTE = (
    "siglip.pulsar2.json and resampler.pulsar2.json quantise on the first CUDA device, as"
    " published: where there is none, set quant.device to cpu in both"
)
_LONGROPE_NOTE = (
    "the rotary positions are stretched (rope_scaling, longrope): each frequency is divided by a"
    " factor of its own, the slowest by 31. It is not known whether the builder does so. To check,"
    " compare the logits behind a prompt of some hundred tokens with transformers'"
    " LlamaForCausalLM made from this config.json, once as it is and once without rope_scaling:"
    " the first must agree better"
)


def cards() -> list[ModelCard]:
    """Return the card of the published model."""
    return [
        ModelCard(
            id="minicpm-v-4",
            repo="openbmb/MiniCPM-V-4",
            architectures=("MiniCPMV",),
            profiles=_PROFILES,
            aliases=("minicpm-v-4.0", "minicpmv4"),
            licence="MiniCPM Model License or Apache-2.0 (the published pages disagree)",
            parameters=4_059_533_040,
            config=_CONFIG,
            tiny=_TINY,
            text_prefixes=("llm.",),
            tensors=tensors,
            choices={"fit": preprocess.FIT, "layout": _LAYOUT},
            text_model={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
            recognises=lambda config: version(config) == VERSION,
            files=_FILES,
            tokens=tokens,
        )
    ]


def tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens that a prompt needs, with their ids for `config`."""
    end = config["eos_token_id"][1]
    return {**_TOKENS, "<|im_end|>": end, "<|im_start|>": end + 1}


def export_vision(job: Job) -> list[Component]:
    """Describe the tower and the resampler behind it.

    Raises:
        UnsupportedProfile: The image size does not fit; the hint names the nearest that does.
    """
    from . import resampler  # torch is only needed from here on

    preprocess.check_size(job.profile.height, job.profile.width)
    tower = _tower(job)
    behind = resampler.component(
        job.text_width,
        job.config["query_num"],
        _grid(job),
        tower.outputs[0],
        placed_queries=False,
        calibration=_CALIBRATION,
        build_options=_build_options(job, layer_configs=None),  # as published: in 8 bits
    )
    return [tower, behind]


def llm_build_args(job: Job) -> LlmBuildArgs:
    """Return the profile's lengths and what the user must know of the build."""
    scaling = job.config.get("rope_scaling") or {}
    notes = [_CUDA_NOTE, *slicing.notes(job.choice("fit"), job.profile.max_prompt)]
    if scaling.get("rope_type") == "longrope":
        notes.append(_LONGROPE_NOTE)
    return LlmBuildArgs.of(
        job.profile,
        notes=tuple(notes),
    )


def prepare_prompt(job: Job, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Write the messages as ChatML, with a run of the tower for each piece of an image."""
    from . import prompt

    preprocess.check_size(job.profile.height, job.profile.width)
    return prompt.assemble(
        job,
        _written(messages),
        prompt.numbered(Rows("<unk>", job.config["query_num"])),
        partial(_samples, job),
        components=("siglip", "resampler"),
        markers={**dict.fromkeys(tokens(job.config)), "<s>": job.config["bos_token_id"]},
        stop=STOP,
    )


def _written(messages: Sequence[Mapping[str, Any]]) -> Iterator[str | Image]:
    from . import prompt

    yield "<s>"
    for message in messages:
        yield f"<|im_start|>{message['role']}\n"
        yield from prompt.lines(message)
        yield "<|im_end|>\n"
    yield "<|im_start|>assistant\n"


def tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the key and shape of every tensor that `config` implies."""
    vision = config["vision_config"]
    width, queries = config["hidden_size"], config["query_num"]
    return {
        **dict(_vision(vision, _depth(config))),
        **dict(layouts.resampler(width, vision["hidden_size"], queries)),
        **dict(layouts.language(config)),
    }


def _vision(config: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Shape]]:
    hidden, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    yield from layouts.linear(TOWER + "embeddings.patch_embedding", hidden, 3, patch, patch)
    yield TOWER + "embeddings.position_embedding.weight", (_side(config) ** 2, hidden)
    for index in range(depth):
        layer = f"{TOWER}encoder.layers.{index}."
        yield from layouts.affine(layer + "layer_norm1", hidden)
        yield from layouts.affine(layer + "layer_norm2", hidden)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layouts.linear(f"{layer}self_attn.{name}", hidden, hidden)
        yield from layouts.linear(layer + "mlp.fc1", inner, hidden)
        yield from layouts.linear(layer + "mlp.fc2", hidden, inner)
    yield from layouts.affine(TOWER + "post_layernorm", hidden)


def _depth(config: Mapping[str, Any]) -> int:
    """Layers stored and used."""
    depth: int = config["vision_config"]["num_hidden_layers"]
    return depth - bool(config["drop_vision_last_layer"])


def _side(vision: Mapping[str, Any]) -> int:
    """Positions along a side of the stored table."""
    side: int = vision["image_size"] // vision["patch_size"]
    return side


def _grid(job: Job) -> tuple[int, int]:
    """Patches down and across the image."""
    patch = job.config["vision_config"]["patch_size"]
    return job.profile.height // patch, job.profile.width // patch


def _tower(job: Job) -> Component:
    from . import siglip

    vision = job.config["vision_config"]
    tower = siglip.Tower(
        hidden=vision["hidden_size"],
        inner=vision["intermediate_size"],
        heads=vision["num_attention_heads"],
        gelu="tanh",
        eps=vision["layer_norm_eps"],
    )
    rows, columns = _grid(job)
    strip = job.choice("layout") == "strip"
    chain = [_placed_embedding(job, tower) if strip else _embedding(job, tower)]
    for index in range(_depth(job.config)):
        keys = f"{TOWER}encoder.layers.{index}."
        chain.append(Stage(f"layers.{index}", siglip.Layer(tower), keys, "layer"))
    chain.append(Stage("post_layernorm", siglip.norm(tower), TOWER + "post_layernorm."))
    return Component(
        "siglip",
        "siglip",
        tuple(chain),
        inputs=_ports(job),
        outputs=(Port("vision_embedding", (1, rows * columns, tower.hidden)),),
        preprocess=lambda images: _samples(job, images),
        calibration=_CALIBRATION,
        build_options=_build_options(job),
    )


def _embedding(job: Job, tower: Tower) -> Stage:
    """Positions are picked from the table while the weights are read."""
    from . import siglip

    (rows, columns), side = _grid(job), _side(job.config["vision_config"])
    down, across = (siglip.selection(preprocess.buckets(n, side), side) for n in (rows, columns))
    table = Weight(TOWER + "embeddings.position_embedding.weight")
    module = siglip.Embedding(tower, rows * columns)
    return Stage("embeddings", module, _embedding_keys(siglip.gridded(table, side, down, across)))


def _placed_embedding(job: Job, tower: Tower) -> Stage:
    """Positions are looked up by the ids that the board feeds."""
    from . import siglip

    module = siglip.PlacedEmbedding(tower, _side(job.config["vision_config"]) ** 2)
    table = Weight(TOWER + "embeddings.position_embedding.weight")
    return Stage("embeddings", module, _embedding_keys(table))


def _embedding_keys(position: Weight) -> dict[str, str | Weight]:
    convolution = TOWER + "embeddings.patch_embedding."
    names = ("weight", "bias")
    return {f"patch_embedding.{name}": convolution + name for name in names} | {
        "position": position
    }


def _ports(job: Job) -> tuple[Port, ...]:
    height, width = job.profile.height, job.profile.width
    if job.choice("layout") == "plain":
        return (Port("pixel_values", (1, 3, height, width)),)
    rows, columns = _grid(job)
    patch, patches = height // rows, rows * columns
    return (
        Port("all_pixel_values", (1, 3, patch, patch * patches)),
        Port("position_ids", (1, patches), "int32"),
    )


def _samples(job: Job, images: Sequence[Image]) -> Iterator[Sample]:
    size = job.profile.height, job.profile.width
    ids = preprocess.position_ids(*_grid(job), _side(job.config["vision_config"]))
    for image in images:
        for pixels in preprocess.samples(image, *size, job.choice("fit")):
            if job.choice("layout") == "plain":
                yield {"pixel_values": pixels}
            else:
                yield {"all_pixel_values": preprocess.strip(pixels), "position_ids": ids}


def _build_options(job: Job, **quant: Any) -> dict[str, dict[str, Any]]:
    """Return the published settings that differ from those of other models."""
    return {
        "pulsar2": {
            "target_hardware": job.target,
            "quant": {
                "precision_analysis_mode": "NPUBackend",
                "transformer_opt_level": 1,
                "device": "cuda:0",
                **quant,
            },
            "compiler": {"check": 0},
        }
    }
