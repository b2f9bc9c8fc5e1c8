"""Check components against the plugin contract before anything is traced."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from ..checkpoint.quantised import float_shape
from ..component import feature_sources, sources
from ..errors import CheckpointError, ContractError
from ..layer_files import LayerSpec, wrong_sharing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..checkpoint import Checkpoint
    from ..component import Component, Shape, Stage
    from ..language_model import Decoder, Embedding


def check_component(component: Component, checkpoint: Checkpoint) -> None:
    """Check names, kinds, parameters and keys.

    Raises:
        ContractError: The component contradicts itself.
        CheckpointError: A key is missing, or a tensor has another shape than its parameter.
    """
    where = f"component `{component.name}`"
    if not (component.stages and component.inputs and component.outputs):
        raise ContractError(f"{where} lacks stages, inputs or outputs")
    for name in (component.name, component.stem):
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ContractError(f"{where} has a name that cannot be a file name: {name!r}")
    calibration = component.calibration
    if calibration.format == "Image" and calibration.tensor_format == "AutoColorSpace":
        raise ContractError(
            f"{where} leaves the order of colours of its calibration images to the target, which"
            " may pass blue where the graph expects red",
            hint='say which one channel 0 is: Calibration(..., tensor_format="RGB") or "BGR"',
        )
    ports = [port.name for port in (*component.inputs, *component.outputs)]
    _check_unique(where, "port", ports)
    # Parts of a graph pass values on under the names of stages.
    for name in (*ports, *(stage.name for stage in component.stages)):
        if "/" in name:
            raise ContractError(
                f'{where} has "/" in the name {name!r}',
                hint="tools on boards name a file after each tensor of a graph",
            )
    check_stages(where, component.stages, checkpoint)


def check_chains(components: Sequence[Component], width: int, layers: int) -> None:
    """Check what components take from one another, and what reaches the language model.

    Args:
        components: The whole vision side, each checked by `check_component`.
        width: Of the language model.
        layers: How many decoder layers it has.

    Raises:
        ContractError: The message names the component and the port.
    """
    _check_unique("the vision side", "component", [component.name for component in components])
    known: dict[str, Component] = {}
    taken = dict[str, set[str]]()
    for component, source in zip(components, sources(components).values(), strict=True):
        if source:
            _check_follower(component, source, known)
            ports = feature_sources(known[source], component)
            taken.setdefault(source, set()).update(ports.values())
        known[component.name] = component
    for component in components:
        if component.name in taken:
            _check_taken(component, taken[component.name])
        else:
            _check_end(component, width, layers)


def _check_follower(component: Component, source: str, known: Mapping[str, Component]) -> None:
    if source not in known:
        raise ContractError(
            f"component `{component.name}` comes after `{source}`, which is not listed before it",
            hint="list components in the order data flows",
        )
    if component.preprocess or component.media != "image":
        raise ContractError(
            f"component `{component.name}` takes outputs of `{source}`, and yet says how images or"
            " arrays become its inputs",
            hint='leave out `preprocess` and `media`, or begin a chain by `after=""`',
        )


def _check_taken(component: Component, taken: set[str]) -> None:
    """Check the outputs of a component that others follow: each is taken."""
    for port in component.outputs:
        if port.name not in taken or port.layer is not None:
            where = f"output `{port.name}` of component `{component.name}`"
            fault = "is taken by no component" if port.layer is None else "is not a chain's last"
            raise ContractError(
                f"{where} {fault}",
                hint="rows for the language model leave the last component of a chain",
            )


def _check_end(component: Component, width: int, layers: int) -> None:
    """Check the outputs of a chain's last component: each reaches the language model."""
    first, *further = component.outputs
    where = f"component `{component.name}`"
    if first.shape[-1] != width or first.layer is not None:
        added = "" if first.layer is None else f", added behind layer {first.layer}"
        raise ContractError(
            f"{where} returned {first.name} {first.dtype} {list(first.shape)}{added};"
            f" the language model is {width} wide, and takes the first output in place of"
            " embeddings",
            hint="export the tower with its projector",
        )
    _check_unique(where, "layer", [str(port.layer) for port in further if port.layer is not None])
    for port in further:
        if port.layer is None:
            raise ContractError(
                f"nothing takes the output `{port.name}` of {where}",
                hint="leave it out, or say behind which decoder layer it is added: `Port.layer`",
            )
        alike = (port.shape, port.dtype) == (first.shape, first.dtype)
        if not alike or port.layer not in range(layers):
            raise ContractError(
                f"{where} returned {port.name} {port.dtype} {list(port.shape)} for layer"
                f" {port.layer} of {layers}; its rows are {first.dtype} {list(first.shape)}",
                hint="rows behind a layer are of the same tokens, as many and as wide",
            )


def check_stages(where: str, stages: Sequence[Stage], checkpoint: Checkpoint) -> None:
    """Check names, kinds, parameters and keys of stages; `where` begins the messages.

    Raises:
        ContractError: The stages contradict one another.
        CheckpointError: A key is missing, or a tensor has another shape than its parameter.
    """
    _check_unique(where, "stage", [stage.name for stage in stages])
    first: dict[str, Stage] = {}
    for stage in stages:
        _check_kind(stage, first.setdefault(stage.kind, stage))
        _check_weights(stage, checkpoint)


def check_decoder(decoder: Decoder, tables: Sequence[Embedding]) -> None:
    """Check what a decoder says of its layers, and its stages as `check_stages` does.

    Args:
        decoder: The language model.
        tables: The named tables that its layers may take columns of.

    Raises:
        ContractError: Layers contradict themselves or one another, or ask for what there is not.
        CheckpointError: As `check_stages`.
    """
    specs = [LayerSpec.of(layer) for layer in decoder.specs]
    first: dict[str, tuple[str, object]] = {}
    for layer, spec in zip(decoder.specs, specs, strict=True):
        name = layer.stage.name
        try:
            spec.check()
        except ValueError as error:
            raise ContractError(f"stage `{name}`: {error}") from error
        if clash := spec.names & {weight for weight, _ in layer.stage.module.named_parameters()}:
            raise ContractError(
                f"stage `{name}` has both a parameter and an input or output `{min(clash)}`",
                hint="give the cache or input another name",
            )
        _check_token_inputs(name, spec, tables)
        other, theirs = first.setdefault(layer.stage.kind, (name, _taken(spec)))
        if theirs != _taken(spec):
            raise ContractError(
                f"stages `{other}` and `{name}` are both of kind `{layer.stage.kind}`"
                " but take other caches or inputs",
                hint="give layers of different inputs a kind of their own",
            )
    for wrong in wrong_sharing(specs):
        raise ContractError(wrong)
    stages = [layer.stage for layer in decoder.specs]
    check_stages("the language model", [*stages, decoder.head], decoder.checkpoint)


def _taken(spec: LayerSpec) -> object:
    """Return what a layer's trace depends on: all but where values come from."""
    caches = [(c.name, c.shape, c.grows, c.dtype, c.shared is None) for c in spec.caches]
    return caches, [(port.name, port.width) for port in spec.inputs]


def _check_token_inputs(stage: str, spec: LayerSpec, tables: Sequence[Embedding]) -> None:
    widths = {table.name: table.shape[-1] for table in tables}
    for port in spec.inputs:
        if port.start + port.width > widths.get(port.table, 0):
            there = ", ".join(f"{name} of {width}" for name, width in widths.items()) or "none"
            raise ContractError(
                f"stage `{stage}` takes columns {port.start} to {port.start + port.width} of the"
                f" table `{port.table}`; `embed_extract` gives {there}",
                hint="return the table from `embed_extract`, and convert again",
            )


def check_consumed(
    components: Iterable[Component], checkpoint: Checkpoint, left: Sequence[str]
) -> None:
    """Check that stages use every tensor except those under the prefixes `left`.

    An unused tensor means that the exported model lacks a part of the published one.

    Args:
        components: The whole vision side.
        left: Key prefixes that need no stage: the language model's, and those of spare tensors.

    Raises:
        CheckpointError: Some tensors are not used; the message names them.
    """
    used = {
        key
        for component in components
        for stage in component.stages
        for weight in stage.weights().values()
        for key in weight.keys()
    }
    unused = sorted(
        key for key in checkpoint.tensors if key not in used and not key.startswith(tuple(left))
    )
    if unused:
        raise CheckpointError(
            f"{len(unused)} tensors of the checkpoint are not used: {', '.join(unused[:5])}"
            + (" …" if len(unused) > 5 else ""),
            hint="the checkpoint belongs to another model or version than its config.json",
        )


def _check_unique(where: str, what: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ContractError(f"{where} repeats the {what} name {', '.join(repeated)}")


def _check_kind(stage: Stage, first: Stage) -> None:
    """Stages of a kind share one trace, so they may differ only in their weights."""
    if (mine := _interface(stage)) != (theirs := _interface(first)):
        differing = sorted(name for name, _ in set(mine.items()) ^ set(theirs.items()))
        raise ContractError(
            f"stages `{first.name}` and `{stage.name}` are both of kind `{stage.kind}`"
            f" but differ in {', '.join(differing[:3])}",
            hint="give stages of different shape a kind of their own",
        )
    others = dict(first.module.named_buffers())
    for name, buffer in stage.module.named_buffers():
        if not buffer.is_meta and not torch.equal(buffer, others[name]):
            raise ContractError(
                f"stages `{first.name}` and `{stage.name}` are both of kind `{stage.kind}`"
                f" but their constant `{name}` differs",
                hint="give stages with different constants a kind of their own",
            )


def _interface(stage: Stage) -> dict[str, object]:
    module = stage.module
    parts: dict[str, object] = {"class": type(module)}
    parts |= {name: tuple(p.shape) for name, p in module.named_parameters()}
    parts |= {name: tuple(b.shape) for name, b in module.named_buffers()}
    return parts


def _check_weights(stage: Stage, checkpoint: Checkpoint) -> None:
    try:
        weights = stage.weights()
    except KeyError as error:
        raise ContractError(f"stage `{stage.name}` gives no key for parameter {error}") from error
    for name, parameter in stage.module.named_parameters():
        if not parameter.is_meta:
            raise ContractError(
                f"parameter `{name}` of stage `{stage.name}` is not on the meta device",
                hint='build modules under `with torch.device("meta")`; weights are bound later',
            )
        made = _resolved_shape(stage, name, checkpoint)
        if made != tuple(parameter.shape):
            keys = ", ".join(weights[name].keys())
            raise CheckpointError(
                f"{keys} gives `{stage.name}.{name}` the shape {list(made)};"
                f" config.json implies {list(parameter.shape)}",
                hint="config.json and the tensors belong to different models",
            )


def _resolved_shape(stage: Stage, name: str, checkpoint: Checkpoint) -> Shape:
    weight = stage.weights()[name]
    try:
        tensor = weight.resolve(
            lambda key: torch.empty(float_shape(checkpoint, key), device="meta")
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"{', '.join(weight.keys())} cannot be converted to the shape of"
            f" `{stage.name}.{name}`: {error}",
            hint="config.json and the tensors belong to different models",
        ) from error
    return tuple(tensor.shape)
