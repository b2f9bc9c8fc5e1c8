"""What transformers' class of a model says about its vision side, found by running a tiny one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedModel
from ..plain import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

_SMALL: Mapping[str, int] = {
    "depth": 3,
    "embed_dim": 64,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "mlp_dim": 96,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "projection_dim": 64,
    "projector_hidden_size": 64,
    "vocab_size": 2048,
}
_SHALLOW: Mapping[str, int] = {name: _SMALL[name] for name in ("depth", "num_hidden_layers")}
_TOKENS = ("_token_id", "_token_index")
_CLOSE = 1e-4
_MOST_PARAMETERS = 200_000_000

FEATURES = """\
def features(model: nn.Module, pixels: Tensor) -> Tensor:
    \"\"\"Return the rows for the language model, ``[1, rows, hidden]``.\"\"\"
    result = model.model.get_image_features(pixels{further})
    rows = getattr(result, "pooler_output", result)
    rows = rows if isinstance(rows, Tensor) else torch.cat([*rows])
    return rows.reshape(1, -1, rows.shape[-1])
"""
# Further arguments that a class may need, as they are for one image of the size `shape`.
_FURTHER = (
    "",
    ", image_sizes=torch.tensor([pixels.shape[-2:]])",
    ", pixel_attention_mask=torch.ones(pixels.shape[-4:-3] + pixels.shape[-2:], dtype=torch.bool)",
)


@dataclass(frozen=True)
class Tower:
    """The vision side as stages of a class of transformers.

    Attributes:
        architecture: Name of the class.
        blocks: Name of the list of blocks in it.
        skipped: How many blocks at the end do not contribute.
        unused: Names of those blocks, in the published model and in the tiny one.
        shape: Of the graph's input, float32.
        rows: Tokens of one image.
        features: Source of the function that computes the rows.
        tiny: Overrides of the config, for a model that converts in seconds.
        prefixes: Canonical prefix of keys to the spellings found on disk.
        text_prefixes: Canonical prefixes of the language model.
    """

    architecture: str
    blocks: str
    skipped: int
    unused: tuple[str, ...]
    shape: tuple[int, ...]
    rows: int
    features: str
    tiny: Mapping[str, Any]
    prefixes: Mapping[str, tuple[str, ...]]
    text_prefixes: tuple[str, ...]


def tiny_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides that make a model of `config` small."""
    return _overrides(config, _SMALL)


def find_tower(config: Mapping[str, Any], side: int) -> Tower:
    """Find the tower of the class that `config` names.

    Args:
        config: ``config.json``.
        side: Height and width of an image, px.

    Raises:
        UnsupportedModel: transformers has no such class, or its blocks were not found; the message
            says what was tried.
    """
    architecture = str((config.get("architectures") or [""])[0])
    tried: list[str] = []
    for sizes, further, shape in product(
        (_SMALL, _SHALLOW), _FURTHER, ((1, 3, side, side), (1, 1, 3, side, side))
    ):
        tiny = _overrides(config, sizes)
        source = FEATURES.format(further=further)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = _model(architecture, {**config, **_merged(config, tiny)})
                found = _split(model, source, shape)
        except Exception as error:  # whatever a class raises at what does not fit it
            tried.append(f"{type(error).__name__}: {error}".splitlines()[0][:150])
            continue
        if found:
            blocks, skipped, rows = found
            unused = _unused(architecture, config, model, blocks, skipped)
            return Tower(
                architecture,
                blocks,
                skipped,
                unused,
                shape,
                rows,
                source,
                tiny,
                *_names(model, config),
            )
        tried.append("no list of blocks whose results make up the features")
    reasons = "".join(f"\n  {reason}" for reason in dict.fromkeys(tried))
    raise UnsupportedModel(
        f"the tower of {shown(architecture)} was not found in transformers{reasons}",
        hint="write the stages by hand: docs/plugins.md",
    )


def _split(model: nn.Module, source: str, shape: tuple[int, ...]) -> tuple[str, int, int] | None:
    """Return the list of blocks, how many at its end are skipped, and the number of rows."""
    import torch

    from ..graph.tower import tower_stages
    from ..testing import run_stages

    features = _function(source)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = features(model, pixels)
    tensors = dict(model.named_parameters())
    for name, length in _lists(model):
        for skipped in range(length):
            try:
                stages = tower_stages(model, features, name, shape, count=length - skipped)
                (made,) = run_stages(stages, lambda key: tensors[key].detach(), pixels)
            except Exception:  # this list is another part's, or its blocks take more than a state
                break
            if made.shape == expected.shape and (made - expected).abs().max() < _CLOSE:
                return name, skipped, expected.shape[1]
    return None


def _unused(
    architecture: str, config: Mapping[str, Any], small: nn.Module, blocks: str, skipped: int
) -> tuple[str, ...]:
    """Return the prefixes of the blocks that do not contribute, of either model."""
    counts = {len(model.get_submodule(blocks)) for model in (small, _empty(architecture, config))}  # type: ignore[arg-type]
    return tuple(
        f"{blocks}.{index}." for count in sorted(counts) for index in range(count - skipped, count)
    )


def _function(source: str) -> Any:
    import torch

    names: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor, "nn": torch.nn}
    exec(compile(source, "features", "exec"), names)  # noqa: S102 - our own template, above
    return names["features"]


def _lists(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the lists of modules of one class, the longest first."""
    import torch

    found = [
        (name, len(module))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(item) for item in module}) == 1
    ]
    return iter(sorted(found, key=lambda item: -item[1]))


def _model(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the class of transformers with seeded weights, if they take little memory."""
    import torch

    count = sum(param.numel() for param in _empty(architecture, config).parameters())
    if count > _MOST_PARAMETERS:
        raise UnsupportedModel(f"a small one still has {count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    kind = _class(architecture)
    made: nn.Module = kind(kind.config_class(**config)).eval()
    return made


def _empty(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    from ..graph.tower import parameters_on_meta

    kind = _class(architecture)
    with parameters_on_meta():
        made: nn.Module = kind(kind.config_class(**config))
    return made


def _class(architecture: str) -> Any:
    """Return a class of transformers; code that comes with a checkpoint is never run."""
    import transformers

    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise UnsupportedModel(f"transformers has no class {shown(architecture)}")
    return kind


# The tiny one ------------------------------------------------------------------------------------


def _overrides(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return small values for the sizes that the config names, nested as it is."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            if inner := _overrides(value, sizes):
                found[name] = inner
        elif name in sizes and isinstance(value, int):
            found[name] = min(value, sizes[name])
        elif name == "layer_types" and isinstance(value, list):
            found[name] = value[: sizes["num_hidden_layers"]]
        elif name.endswith(_TOKENS) and isinstance(value, int) and "vocab_size" in sizes:
            found[name] = value % (sizes["vocab_size"] - 512) + 512 if value >= 512 else value
    return found


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {**base[name], **_merged(base[name], value)} if isinstance(value, dict) else value
        for name, value in overrides.items()
    }


# Names -------------------------------------------------------------------------------------------


def _names(
    model: nn.Module, config: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the prefixes on disk, and those of the language model.

    Source: transformers, ``conversion_mapping``: what published checkpoints call the modules.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    prefixes: dict[str, tuple[str, ...]] = {}
    read: Any = get_checkpoint_conversion_mapping
    for rule in read(str(config.get("model_type"))) or ():
        for old, new in zip(rule.source_patterns, rule.target_patterns, strict=False):
            old = old.removeprefix("^")
            if old.replace("_", "").replace(".", "").isalnum() and old != new:
                inner = f"{old}.model." if new.endswith("language_model") else f"{old}."
                prefixes[f"{new}."] = (*prefixes.get(f"{new}.", (f"{new}.",)), inner)
    embedding = next(
        name for name, _ in model.named_parameters() if name.endswith("embed_tokens.weight")
    )
    return prefixes, (embedding.removesuffix("embed_tokens.weight"), "lm_head.")
