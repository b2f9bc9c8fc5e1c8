"""Read the files of a CLIP: weights, configuration and vocabulary."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ..checkpoint import Checkpoint
from ..checkpoint.config import read_config
from ..checkpoint.headers import DAMAGED, read_shard
from ..errors import CheckpointError, UsageError
from ..foreign import load, open_regular
from ..limits import CLIP_LAYERS, CLIP_MERGES_BYTES, CONFIG_BYTES
from ..plain import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    Config = dict[str, Any]

T = TypeVar("T")

# In a folder, the first of these is read.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
DESCRIPTION = "open_clip_config.json"
BPE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2  # the lines of that file which CLIP uses
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# open_clip's names to transformers', applied in this order.
RENAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"(layers\.\d+)\.ln_([12])\.", r"\1.layer_norm\2."),
    (r"(layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
)
# Constants that older versions of both libraries stored.
CONSTANTS = re.compile(r"(^|\.)(position_ids|attn_mask)$")


@dataclass(frozen=True)
class ClipFiles:
    """The files of a CLIP, read.

    Attributes:
        path: The file or folder named by the user.
        config: Of transformers' `CLIPConfig`.
        tensors: Float32 weights under transformers' names; those of a ``.bin`` file are views of
            the mapped file, read when they are used.
        mean, std: Per channel, of pixels between 0 and 1.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def weights_file(path: Path) -> Path:
    """Return `path` if it is a file, or else the file of weights in that folder.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    looked = f"in: {path}\n  looked for: {', '.join(WEIGHTS)}"
    raise CheckpointError(
        f"no weights of a CLIP\n  {looked if path.is_dir() else f'there is no {path}'}",
        hint=f"name open_clip's `{WEIGHTS[3]}` or the folder that holds it",
    )


def read_clip(path: Path) -> ClipFiles:
    """Read the weights of a CLIP with a vision transformer.

    Args:
        path: A file of open_clip's (``open_clip_pytorch_model.bin`` or safetensors), or a folder
            with one of `WEIGHTS`. Weights under transformers' names need their ``config.json``
            beside them. open_clip's do not: nearly everything follows from shapes, the rest is as
            in open_clip's own ViT-B to ViT-bigG: heads of 64 features, 16 heads in a vision tower
            wider than 1024, and exact GELU. An ``open_clip_config.json`` beside them takes
            precedence; weights with ``quick_gelu`` need it.

    Raises:
        CheckpointError: The weights are missing, damaged, or not those of such a CLIP.
    """
    file = weights_file(path)
    tensors = {key: value for key, value in _tensors(file) if not CONSTANTS.search(key)}
    if "visual.conv1.weight" in tensors:
        return _of_open_clip(path, file.parent, tensors)
    if "vision_model.embeddings.patch_embedding.weight" in tensors:
        return _of_transformers(path, file.parent, tensors)
    raise CheckpointError(
        f"these are not the weights of a CLIP with a vision transformer\n  file: {file}\n"
        f"  tensors: {len(tensors)}, such as {', '.join(sorted(tensors)[:3]) or 'none'}",
        hint=f"give open_clip's `{WEIGHTS[3]}` of a ViT, or a Hugging Face CLIP folder",
    )


def read_merges(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read CLIP's byte pair encoding in its original form, `BPE`.

    Returns:
        Token to id, the two special tokens last, and the merges in order.

    Raises:
        UsageError: The file is damaged, or not CLIP's vocabulary.

    Source: open_clip, ``SimpleTokenizer.__init__``.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    try:
        lines = _unpacked(path).decode().split("\n", MERGES + 1)[1 : MERGES + 1]
        merges = [(first, second) for first, second in map(str.split, filter(None, lines))]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(
            f"{path} cannot be read as CLIP's merges\n  {str(error)[:200]}",
            hint=f"give the `{BPE}` that the package open-clip-torch contains",
        ) from error
    letters = sorted(ByteLevel.alphabet())  # CLIP's order: printable bytes, then stand-ins
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def _unpacked(path: Path) -> bytes:
    with open_regular(path) as file, gzip.open(file) as unpacked:
        content = unpacked.read(CLIP_MERGES_BYTES + 1)
    if len(content) > CLIP_MERGES_BYTES:
        raise ValueError(f"it unpacks to more than {CLIP_MERGES_BYTES >> 20} MiB")
    return content


# Read --------------------------------------------------------------------------------------------


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix not in (".safetensors", ".json"):
        yield from _mapped(file)
        return
    if file.suffix == ".json":
        checkpoint = Checkpoint.open(file.parent)
    else:
        shard = read_shard(file)
        checkpoint = Checkpoint(file.parent, {}, [shard], shard.tensors)
    with checkpoint:
        for key in checkpoint.tensors:
            yield key, checkpoint.tensor(key).float()


def _mapped(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file that `torch.save` wrote, without executing pickled code."""
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds on damaged bytes
        raise CheckpointError(
            f"`{file.name}` cannot be read as plain weights\n  file: {file}\n  "
            + str(error).split("\n")[0],
            hint=f"{DAMAGED}; files that hold more than tensors are never opened",
        ) from error
    if not isinstance(state, dict):
        _refuse(file, f"holds {type(state).__name__} instead of named weights")
    left = file.stat().st_size
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            _refuse(file, f"holds {shown(key)}, which is not a tensor but {type(value).__name__}")
        # A view can repeat its numbers for ever; converting it would store each.
        left -= value.numel() * value.element_size()
        if left < 0 or value.layout != torch.strided or value.device.type != "cpu":
            _refuse(file, f"holds {shown(key)}, whose numbers are not in the file")
        yield str(key), value.float()


def _refuse(file: Path, fact: str) -> NoReturn:
    raise CheckpointError(
        f"`{file.name}` {fact}\n  file: {file}",
        hint=f"give the weights alone, as in open_clip's `{WEIGHTS[3]}`",
    )


# Two layouts -------------------------------------------------------------------------------------


def _of_transformers(path: Path, folder: Path, tensors: Mapping[str, Tensor]) -> ClipFiles:
    config = read_config(folder)
    for tower in ("text_config", "vision_config"):
        _check_layers(path, config.get(tower))
    described = _described(_Processor, folder / "preprocessor_config.json")
    mean, std = _colours(folder, described.image_mean, described.image_std)
    return ClipFiles(path, config, tensors, mean, std)


def _of_open_clip(path: Path, folder: Path, tensors: Mapping[str, Tensor]) -> ClipFiles:
    described = _described(_Description, folder / DESCRIPTION)
    preprocess = described.preprocess_cfg
    for name, known in (("resize_mode", "shortest"), ("interpolation", "bicubic")):
        if (asked := getattr(preprocess, name)) != known:
            raise CheckpointError(
                f"this CLIP needs `{name}` {shown(asked)}; only {known} is supported\n"
                f"  file: {folder / DESCRIPTION}",
                hint="judge with a CLIP such as open_clip's ViT-H-14, laion2b_s32b_b79k",
            )
    renamed = dict(_renamed(tensors))
    config = _config(path, renamed, described.model_cfg)
    mean, std = _colours(folder, preprocess.mean, preprocess.std)
    return ClipFiles(path, config, renamed, mean, std)


# What is read of the files beside the weights; they hold more.


@dataclass(frozen=True)
class _Processor:
    image_mean: tuple[float, ...] = MEAN
    image_std: tuple[float, ...] = STD


@dataclass(frozen=True)
class _Preprocess:
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


@dataclass(frozen=True)
class _VisionTower:
    head_width: int | None = None


@dataclass(frozen=True)
class _TextTower:
    heads: int | None = None


@dataclass(frozen=True)
class _Model:
    quick_gelu: bool = False
    vision_cfg: _VisionTower = _VisionTower()
    text_cfg: _TextTower = _TextTower()


@dataclass(frozen=True)
class _Description:
    preprocess_cfg: _Preprocess = _Preprocess()
    model_cfg: _Model = _Model()


def _described(kind: type[T], path: Path) -> T:
    if not path.exists():
        return kind()
    return load(kind, path, CONFIG_BYTES, CheckpointError, hint="fetch the file again")


def _colours(
    folder: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise CheckpointError(
            f"mean {shown(mean)} and deviation {shown(std)} are not those of RGB images\n"
            f"  in: {folder}",
            hint="each has three numbers, and deviations are positive",
        )
    return mean, std


def _check_layers(path: Path, tower: Any) -> None:
    """Refuse a count of layers that no CLIP has, before so many are made."""
    count = tower.get("num_hidden_layers", 12) if isinstance(tower, dict) else 12
    if not isinstance(count, int) or not 0 < count <= CLIP_LAYERS:
        raise CheckpointError(
            f"the configuration is not that of a CLIP: {shown(count)} layers\n  read from: {path}",
            hint="use weights, `config.json` and tokenizer of one and the same CLIP",
        )


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, value in tensors.items():
        name = key
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if found := re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", value.tensor_split(3), strict=True):
                yield f"{found[1]}{part}_proj.{found[2]}", piece
        else:
            # open_clip multiplies by its projections from the right.
            yield name, value.T if name.endswith("_projection.weight") else value


def _config(path: Path, tensors: Mapping[str, Tensor], described: _Model) -> Config:
    """Derive a configuration from shapes and, where they do not tell, from `described`."""
    common = {
        "hidden_act": "quick_gelu" if described.quick_gelu else "gelu",
        "projection_dim": _shape(path, tensors, "text_projection.weight")[0],
    }
    words, _ = _shape(path, tensors, "text_model.embeddings.token_embedding.weight")
    context, _ = _shape(path, tensors, "text_model.embeddings.position_embedding.weight")
    patches = "vision_model.embeddings.patch_embedding.weight"
    width, _, _, patch_px = _shape(path, tensors, patches, rank=4)
    places, _ = _shape(path, tensors, "vision_model.embeddings.position_embedding.weight")
    text, vision = _tower(path, tensors, "text_model"), _tower(path, tensors, "vision_model")
    heads = 16 if width > 1024 else max(1, width // 64)
    # No width of zero, whatever is said.
    head_width = max(1, described.vision_cfg.head_width or width // heads)
    text_heads = described.text_cfg.heads or max(1, text["hidden_size"] // 64)
    for tower in (text, vision):
        _check_layers(path, tower)
    return {
        **common,
        "text_config": {
            **common,
            **text,
            "num_attention_heads": text_heads,
            "vocab_size": words,
            "max_position_embeddings": context,
            "eos_token_id": words - 1,
        },
        "vision_config": {
            **common,
            **vision,
            "num_attention_heads": width // head_width,
            "patch_size": patch_px,
            "image_size": math.isqrt(places - 1) * patch_px,
        },
    }


def _tower(path: Path, tensors: Mapping[str, Tensor], tower: str) -> Config:
    layers = {
        found[1] for key in tensors if (found := re.match(rf"{tower}\.encoder\.layers\.(\d+)", key))
    }
    inner, width = _shape(path, tensors, f"{tower}.encoder.layers.0.mlp.fc1.weight")
    return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(layers)}


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, rank: int = 2) -> tuple[int, ...]:
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or len(shape) != rank:
        raise CheckpointError(
            f"these are weights of another CLIP: `{name}` has an unexpected shape\n"
            f"  found: {'none' if shape is None else [*shape]}, expected {rank} dimensions\n"
            f"  read from: {path}",
            hint="judge with a CLIP such as open_clip's ViT-H-14, laion2b_s32b_b79k",
        )
    return shape
