"""A job with all that its plugin says of it, checked, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..component import Calibration, CalibrationFormat, Component, Stage, heads, sources
from ..errors import CheckpointError, ContractError, UsageError
from ..language_model import TABLE_NAME, Embedding, LlmBuildArgs
from ..toolchains.contract import BuildRequest, GraphFile
from .job import choose

if TYPE_CHECKING:
    from ..calibration import Archive
    from ..graph.stitch import Tracer
    from ..job import Job
    from ..plugins import Registry
    from ..request import Request
    from .job import Chosen


LLM_FOLDER = "llm"
"""Where a rewritten language-model checkpoint lies in a bundle."""


@dataclass(frozen=True)
class Prepared:
    """What is about to be converted.

    Attributes:
        request: What was asked for.
        registry: Where hooks are called.
        job: The conversion.
        chosen: The toolchain, its options and its target.
        components: In the order data flows, one chain behind the other.
        cuts: For each component, the indices of the stages that begin a new part.
        embedding: None for a conversion of the vision side alone.
        llm: The language model's build.
        archive: Calibration samples that exist already.
        tables: Further tables beside the embedding.
    """

    request: Request
    registry: Registry
    job: Job
    chosen: Chosen
    components: tuple[Component, ...]
    cuts: tuple[tuple[int, ...], ...]
    embedding: Embedding | None
    llm: LlmBuildArgs
    archive: Archive | None = None
    tables: tuple[Embedding, ...] = ()

    @cached_property
    def files(self) -> list[tuple[Component, GraphFile]]:
        """The graph files, each with the component it belongs to."""
        taken = sources(self.components)
        return [
            (component, graph)
            for component, cuts in zip(self.components, self.cuts, strict=True)
            for graph in _graph_files(component, cuts, self.job, taken[component.name])
        ]

    def tracer(self) -> Tracer:
        """Return a tracer that patches attention as the family says, for one component.

        Kinds of stages are a component's own: two towers may both have a kind ``block``.
        """
        from ..graph.export import torch_dtype
        from ..graph.stitch import Tracer

        family, job = self.job.family, self.job

        def patch(stage: Stage) -> Stage:
            patched = self.registry.call(family, "patch_attention", job=job, stage=stage)
            with self.registry.blame(family, "patch_attention"):
                return _same_parameters(stage, patched)

        return Tracer(patch, torch_dtype(job.options.dtype), job.options.opset)

    def build_request(self, samples: dict[str, int]) -> BuildRequest:
        """Describe the bundle to a toolchain; `samples` counts those of each graph file."""
        given = self.archive.path.name if self.archive else None
        graphs = [
            replace(graph, samples=samples.get(graph.stem, 0), archive=given or graph.archive)
            for _, graph in self.files
        ]
        rewritten = self.llm.checkpoint is not None
        return BuildRequest(
            model=self.job.card.id,
            checkpoint=LLM_FOLDER if rewritten else str(self.job.checkpoint.folder.resolve()),
            options=self.chosen.options,
            task=self.job.task,
            graphs=tuple(graphs),
            llm=replace(self.llm, checkpoint=None),
            decoder_layers=int(self.job.text_config["num_hidden_layers"]),
        )


def _graph_files(
    component: Component, cuts: Sequence[int], job: Job, after: str
) -> list[GraphFile]:
    """Return the files a component becomes.

    The first one is calibrated as the component says. A later part receives what the part before
    it returns, so its samples are arrays, and several of them where a stage passes several on.
    """
    from ..graph.export import part_stems, torch_dtype
    from ..graph.shapes import part_ports

    files: list[GraphFile] = []
    ports = part_ports(component, cuts, torch_dtype(job.options.dtype))
    for stem, (inputs, outputs) in zip(part_stems(component, cuts), ports, strict=True):
        calibration = component.calibration
        if files:
            form: CalibrationFormat = "NumpyObject" if len(inputs) > 1 else "Numpy"
            calibration, archive = Calibration(form, size=calibration.size), stem
        else:
            shared = calibration.format == "NumpyObject"
            archive = component.name if shared else inputs[0].name
        options = component.build_options
        files.append(
            GraphFile(
                stem,
                inputs,
                outputs,
                calibration,
                f"{archive}.tar",
                0,
                options,
                component.name,
                after,
            )
        )
    return files


def prepare(
    request: Request, registry: Registry, job: Job, archive: Archive | None = None
) -> Prepared:
    """Ask the family for its components, cuts, embedding and build arguments, and check them.

    Raises:
        ContractError: The plugin's answer is unfit (names plugin and hook).
        CheckpointError: The checkpoint lacks something, or holds more than is used.
        BudgetError: The prompt budget cannot hold one prompt's images.
        UnsupportedProfile: The image size does not fit.
        UsageError: There is no such toolchain, or `archive` cannot serve the graphs.
    """
    from ..graph.contract import check_chains, check_component, check_consumed
    from ..language.build_args import check_prompt_budget

    def call(hook: str, **arguments: Any) -> Any:
        return registry.call(job.family, hook, job=job, **arguments)

    components = tuple(call("export_vision"))
    with registry.blame(job.family, "export_vision"):
        _check_types(components, Component)
        if job.options.names == "published":
            names = job.profile.names
            components = tuple(replace(c, stem=names.get(c.name, c.stem)) for c in components)
        for component in components:
            check_component(component, job.checkpoint)
        check_chains(components, job.text_width, int(job.text_config["num_hidden_layers"]))
    check_consumed(
        components, job.checkpoint, (*job.card.layout.text_prefixes, *job.card.layout.spare)
    )
    check_prompt_budget(job.profile, image_rows(components))
    cuts = []
    for component in components:
        chosen = call("split_graph", component=component)
        with registry.blame(job.family, "split_graph"):
            cuts.append(_checked_cuts(chosen, component))
    if archive is not None:
        _check_archive(archive, components, cuts)
    tables: list[Embedding] = []
    if not request.vision_only:
        found = call("embed_extract")
        with registry.blame(job.family, "embed_extract"):
            tables = check_tables(found, job)
    chosen = choose(request, job.card, registry)
    llm = call("llm_build_args")
    with registry.blame(job.family, "llm_build_args"):
        _check_types([llm], LlmBuildArgs)
        if request.vision_only:  # the tensors that its checkpoint would take are not read
            llm = replace(llm, checkpoint=None, notes=())
        for key, _ in llm.checkpoint.tensors.values() if llm.checkpoint else ():
            job.checkpoint.info(key)
    prepared = Prepared(
        request,
        registry,
        job,
        chosen,
        components,
        tuple(cuts),
        tables[0] if tables else None,
        llm,
        archive,
        tuple(tables[1:]),
    )
    with registry.blame(job.family, "export_vision"):
        _check_archives(prepared.files)
    return prepared


def image_rows(components: Sequence[Component]) -> int:
    """Return how many rows an image gives the language model; of several towers, the most."""
    taken = sources(components)
    of, first = {component.name: component for component in components}, heads(taken)
    ends = [component for component in components if component.name not in taken.values()]
    seen = [end for end in ends if of[first[end.name]].media == "image"]
    return max(end.rows for end in seen or ends)


def _check_archives(files: Sequence[tuple[Component, GraphFile]]) -> None:
    """Refuse samples of two files that would be stored under one name."""
    owner: dict[str, Component] = {}
    for component, graph in files:
        for name in (graph.archive, f"{graph.stem}.onnx"):
            first = owner.setdefault(name, component)
            if first is not component:
                raise ContractError(
                    f"components `{first.name}` and `{component.name}` both write {name}",
                    hint="give their first inputs, or their stems, names of their own",
                )


def _check_archive(
    archive: Archive, components: Sequence[Component], cuts: Sequence[tuple[int, ...]]
) -> None:
    files = len(components) + sum(map(len, cuts))
    if files > 1:
        raise UsageError(
            f"`{archive.source}` holds samples of one graph, this conversion makes {files} files",
            hint="give images by --images, from which samples for all of them are made",
        )
    archive.samples(components[0].calibration.format)


def _check_types(values: Sequence[object], expected: type) -> None:
    if not values:
        raise ContractError("returned nothing")
    for value in values:
        if not isinstance(value, expected):
            raise ContractError(f"returned {value!r}, not a {expected.__name__}")


def _checked_cuts(cuts: object, component: Component) -> tuple[int, ...]:
    allowed = range(1, len(component.stages))
    listed = isinstance(cuts, Sequence) and all(isinstance(cut, int) for cut in cuts)
    chosen: list[int] = list(cuts) if listed else []  # type: ignore[call-overload]
    if not listed or not set(chosen) <= set(allowed) or chosen != sorted(set(chosen)):
        raise ContractError(
            f"cuts {cuts} of component `{component.name}` are not ascending stage indices"
            f" between 1 and {len(component.stages) - 1}"
        )
    return tuple(chosen)


def check_tables(found: object, job: Job) -> list[Embedding]:
    """Return the embedding and the named tables behind it."""
    tables: list[Any] = list(found) if isinstance(found, (list, tuple)) else [found]
    _check_types(tables, Embedding)
    names = [table.name for table in tables]
    if names[0] or len(set(names)) < len(names) or not all(map(TABLE_NAME.fullmatch, names[1:])):
        raise ContractError(
            f"returned tables with the names {names}",
            hint="the embedding comes first and has none; the others each have a word of their own",
        )
    for table in tables:
        shape = job.checkpoint.info(table.key).shape
        if shape != tuple(table.shape):
            raise CheckpointError(
                f"`{table.key}` is {list(shape)} in the checkpoint,"
                f" {list(table.shape)} by its config",
                hint="config.json and the tensors belong to different models",
            )
    return tables


def _same_parameters(plain: Stage, patched: object) -> Stage:
    if not isinstance(patched, Stage):
        raise ContractError(f"returned {patched!r}, not a Stage")
    before = {name: p.shape for name, p in plain.module.named_parameters()}
    after = {name: p.shape for name, p in patched.module.named_parameters()}
    if before != after:
        changed = sorted(name for name, _ in set(before.items()) ^ set(after.items()))
        raise ContractError(
            f"changed the parameters of stage `{plain.name}`: {', '.join(changed[:3])}",
            hint="patching rearranges computation; names and shapes of parameters stay",
        )
    return patched
