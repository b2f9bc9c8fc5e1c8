"""The conversion itself: steps in their order, each done once for equal inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import SCHEMA, Bundle
from ..calibration import (
    Found,
    check_arrays,
    check_images,
    find_archive,
    find_data,
    load_samples,
    store_samples,
    warn_of_few,
)
from ..checkpoint.assets import find_assets, find_code
from ..component import sources
from ..files import sha256
from ..plain import plain
from ..step import Step
from ..versions import code_digest, versions
from ..workspace import Workspace, digest
from .flow import Flow
from .job import open_job
from .plan import check_room, make_plan, notes, sample_counts
from .prepared import LLM_FOLDER, Prepared, prepare

if TYPE_CHECKING:
    from ..calibration import Archive
    from ..component import Component, Sample
    from ..job import Job
    from ..language_model import Embedding
    from ..plugins import Registry
    from ..progress import Progress
    from ..request import Request
    from ..toolchains.contract import GraphFile


def convert(request: Request, out: Path, registry: Registry, progress: Progress) -> Bundle:
    """Fill `out` with everything a board build needs.

    The same request run again continues: finished steps are kept, changed ones done anew. The
    folder changes only after every step has succeeded.

    Raises:
        AxcoreError: One of its subclasses says what is wrong; nothing good is lost.
    """
    job = open_job(request, registry, progress)
    with job.checkpoint:
        data = find_data(request.images) if request.images else Found()
        given = request.calibration_archive
        archive = find_archive(given, progress) if given else None
        workspace = Workspace(out, job.card.id)
        workspace.check()
        identity = digest(_identity(request, job, registry, data, archive))
        if workspace.is_current(identity):
            progress.say(f"{out} is up to date")
            return Bundle.open(out)
        prepared = prepare(request, registry, job, archive)
        check_room(make_plan(prepared, data), out)
        if data.all:
            _check_data(prepared, data, progress)
        with workspace.locked():
            _Conversion(prepared, data, workspace, progress).run()
            workspace.remember(identity)
        return Bundle.open(out)


def _check_data(prepared: Prepared, data: Found, progress: Progress) -> None:
    """Refuse images and arrays that are unfit, or that a chain lacks."""
    taken = sources(prepared.components)
    first = [component for component in prepared.components if not taken[component.name]]
    if minima := [one.calibration.minimum for one in first if one.media == "image"]:
        check_images(data.images, max(minima), progress)
    for component in first:
        if component.media == "array":
            check_arrays(data.arrays, component, progress)


@dataclass(frozen=True)
class _Finding:
    node: str
    op: str
    constraint: str
    remedy: str


@dataclass(frozen=True)
class _Findings:
    """What a record of a lint says at least."""

    findings: tuple[_Finding, ...]


@dataclass(frozen=True)
class _Verified:
    """What a record of a verification says at least."""

    cosine: float
    max_abs: float


@dataclass(frozen=True)
class _Stored:
    """What a record of stored samples says at least."""

    samples: int


class _Conversion:
    """The steps of one conversion in a locked workspace."""

    def __init__(
        self,
        prepared: Prepared,
        data: Found,
        workspace: Workspace,
        progress: Progress,
    ) -> None:
        self.prepared, self.data = prepared, data
        self.workspace, self.progress = workspace, progress
        self.job, self.options = prepared.job, prepared.job.options
        self.tracers = {component.name: prepared.tracer() for component in prepared.components}
        self.code = _code(prepared.job, prepared.registry)
        self.exported: dict[str, Step] = {}
        self.flow = Flow(prepared, self._locate)

    def run(self) -> None:
        """Do what is not done, then publish."""
        components = []
        self._say_unchecked()
        if not self.prepared.request.vision_only:
            self._check_llm()
        for component, cuts in zip(self.prepared.components, self.prepared.cuts, strict=True):
            exported = self.exported[component.name] = self._export(component, cuts)
            findings, verified = self._lint(component, exported), self._verify(component)
            components.append(_describe(component, findings, verified))
        samples = self._calibrate() if self.data.all else self._adopt_archive()
        self._embed()
        if not self.prepared.request.vision_only:
            self._rewrite_llm()
        self._copy_assets()
        build = self.prepared.build_request(samples)
        texts = self.prepared.chosen.toolchain.prepare(build)
        self._run("toolchain", {"texts": texts}, lambda folder: _write_texts(texts, folder))
        manifest = {
            **_head(self.prepared),
            "components": components,
            "build": plain(build),
            "notes": notes(self.prepared, self.data),
            "files": {
                name: asdict(content)
                for step in self.workspace.steps
                for name, content in sorted(step.files.items())
            },
        }
        text = json.dumps(manifest, indent=2) + "\n"
        for name, kept in self.workspace.publish(text).items():
            self.progress.warn(f"{name} had been changed; your version is kept as {kept}")

    def _run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any] | None],
        metrics: type[Any] | None = None,
    ) -> Step:
        step = self.workspace.run(name, {**inputs, **self.code}, make, metrics)
        self.progress.say(f"{name}: {'kept' if step.reused else f'done in {step.seconds:.1f} s'}")
        return step

    def _export(self, component: Component, cuts: Sequence[int]) -> Step:
        from ..graph.export import export_component

        keys = [key for s in component.stages for w in s.weights().values() for key in w.keys()]
        inputs = {
            "config": self.job.config,
            "task": self.job.task,
            "size": [self.job.profile.height, self.job.profile.width],
            "choices": dict(self.options.choices),
            "dtype": self.options.dtype,
            "opset": self.options.opset,
            "cuts": cuts,
            "stem": component.stem,
            "weights": self.job.checkpoint.digest(keys),
        }

        def make(folder: Path) -> None:
            export_component(
                component,
                self.job.checkpoint,
                self.tracers[component.name],
                folder,
                dtype=self.options.dtype,
                cuts=cuts,
                progress=self.progress,
            )

        return self._run(f"export-{component.name}", inputs, make)

    def _say_unchecked(self) -> None:
        target = self.prepared.chosen.target
        if self.prepared.request.lint and target.operators is None:
            self.progress.say(
                f"no operator table is published for {target.name}: graphs are not checked"
            )

    def _lint(self, component: Component, exported: Step) -> list[Any] | None:
        """Return what the operator table says against the graphs; None where nothing is known."""
        toolchain, target = self.prepared.chosen.toolchain, self.prepared.chosen.target
        if not self.prepared.request.lint or target.operators is None:
            return None
        inputs = {
            "exported": exported.key,
            "toolchain": code_digest(type(toolchain).__module__.partition(".")[0]),
            "target": target.name,
            "table": target.operators.digest,
        }

        def make(_: Path) -> Mapping[str, Any]:
            graphs = [self.workspace.path(exported, name) for name in sorted(exported.files)]
            findings = [
                finding
                for graph in graphs
                if graph.suffix == ".onnx"
                for finding in toolchain.lint(graph, target)
            ]
            return {"findings": [{**asdict(f), "file": Path(f.file).name} for f in findings]}

        found: list[Any] = self._run(f"lint-{component.name}", inputs, make, _Findings).metrics[
            "findings"
        ]
        for finding in found:
            told = (finding[key] for key in ("constraint", "consequence", "remedy"))
            self.progress.warn(
                f"{finding['node']} ({finding['op']}): {'; '.join(filter(None, told))}"
            )
        return found

    def _verify(self, component: Component) -> Step | None:
        from ..graph.verify import THRESHOLDS

        if not self.prepared.request.verify or self.options.dtype not in THRESHOLDS:
            return None

        def make(_: Path) -> Mapping[str, Any]:
            tracer = self.tracers[component.name]
            return self.flow.verify(component, self.data, tracer, self.progress).metrics()

        inputs = {
            "exported": [step.key for step in self.exported.values()],
            "images": _content(self.flow.chosen(self.data)),
        }
        step = self._run(f"verify-{component.name}", inputs, make, _Verified)
        self.progress.say(
            f"{component.name}: cosine {step.metrics['cosine']:.9f},"
            f" max abs {step.metrics['max_abs']:.3g} against PyTorch"
        )
        return step

    def _calibrate(self) -> dict[str, int]:
        """Write samples for every graph file; return how many each has."""
        steps: list[Step] = []
        for index, (_, graph) in enumerate(self.flow.chain):
            place = self.flow.before[index]
            before = None if place is None else steps[place]
            inputs = {
                "calibration": asdict(graph.calibration),
                "ports": [asdict(port) for port in graph.inputs],
                **self._sample_inputs(index, before),
            }
            make = partial(self._write_samples, index, before)
            steps.append(self._run(f"calibrate-{graph.stem}", inputs, make, _Stored))
        return {
            graph.stem: int(step.metrics["samples"])
            for (_, graph), step in zip(self.flow.chain, steps, strict=True)
        }

    def _sample_inputs(self, index: int, before: Step | None) -> Mapping[str, Any]:
        """Return what a file's samples are made from: images, or the file before and its own."""
        if before is not None:
            place = self.flow.before[index]
            assert place is not None
            owner = self.flow.chain[place][0]
            return {"samples": before.key, "exported": self.exported[owner.name].key}
        return {
            "size": [self.job.profile.height, self.job.profile.width],
            "choices": dict(self.options.choices),
            "images": _content(self.data),
        }

    def _adopt_archive(self) -> dict[str, int]:
        """Copy the archive that was given, if one was; return how many samples its graph has."""
        archive = self.prepared.archive
        if archive is None:
            return {}

        def make(folder: Path) -> None:
            shutil.copyfile(archive.path, folder / archive.path.name)

        inputs = {"archive": archive.path.name, "sha256": archive.sha256}
        self._run("calibration-archive", inputs, make)
        counts = sample_counts(self.prepared, self.data)
        minimum = self.prepared.components[0].calibration.minimum
        warn_of_few(sum(counts.values()), minimum, "samples", self.progress)
        return counts

    def _write_samples(self, index: int, before: Step | None, folder: Path) -> Mapping[str, Any]:
        if before is None:
            samples = self.flow.samples(index, self.data, self.progress)
        else:
            samples = self.flow.features(index, self._stored_samples(index, before))
        graph, name = self.flow.chain[index][1], self.flow.name(index)
        archive = graph.archive.removesuffix(".tar")
        stored = store_samples(name, graph.inputs, graph.calibration, samples, folder, archive)
        return {"samples": stored.samples}

    def _stored_samples(self, index: int, step: Step) -> Iterator[Sample]:
        """Yield the samples that `step` has written for the file before another."""
        place = self.flow.before[index]
        assert place is not None
        graph, behind = self.flow.chain[place][1], self.flow.chain[index][1]
        count, locate = step.metrics["samples"], partial(self.workspace.path, step)
        name = self.flow.name(place)
        samples = load_samples(name, graph.inputs, graph.calibration, count, locate)
        with self.progress.task(f"calibration of {behind.stem}", count, "samples") as task:
            for sample in samples:
                yield sample
                task.advance()

    def _locate(self, component: Component, graph: GraphFile) -> Path:
        return self.workspace.path(self.exported[component.name], f"{graph.stem}.onnx")

    def _embed(self) -> None:
        if self.prepared.embedding is None:
            return
        checkpoint = self.job.checkpoint
        for table in (self.prepared.embedding, *self.prepared.tables):
            formats = () if table.name else self.options.embedding_formats
            inputs = {
                "embedding": asdict(table),
                "formats": formats,
                "weights": checkpoint.digest([table.key]),
            }
            make = partial(self._write_table, table, formats)
            self._run(f"table-{table.name}" if table.name else "embedding", inputs, make)

    def _write_table(self, table: Embedding, formats: tuple[str, ...], folder: Path) -> None:
        from ..language.embedding import write_embedding

        write_embedding(self.job.checkpoint, table, folder, formats, self.progress)

    def _check_llm(self) -> None:
        """Refuse weights that are no numbers here, though only a build will read the rest.

        Hours of a vendor's build would end in a model that answers nonsense. Reading costs what the
        disk takes, once for each version of the files.
        """
        checkpoint = self.job.checkpoint
        prefixes = self.job.card.layout.text_prefixes
        keys = [key for key in checkpoint.tensors if key.startswith(prefixes)]
        inputs = {"weights": checkpoint.signature(), "prefixes": prefixes}
        self._run("language-model-weights", inputs, lambda _: checkpoint.check_finite(keys))

    def _rewrite_llm(self) -> None:
        """Write the language model's own checkpoint where the family asks for one."""
        from ..language.checkpoint import write_checkpoint

        wanted, checkpoint = self.prepared.llm.checkpoint, self.job.checkpoint
        if wanted is None:
            return
        inputs = {
            "config": wanted.config,
            "tensors": dict(wanted.tensors),
            "weights": checkpoint.digest(key for key, _ in wanted.tensors.values()),
        }

        def make(folder: Path) -> None:
            write_checkpoint(checkpoint, wanted, folder / LLM_FOLDER, self.progress)

        self._run("language-model", inputs, make)

    def _copy_assets(self) -> None:
        def make(target: Path) -> None:
            for name, path in _assets(self.job, self.prepared.request).items():
                shutil.copyfile(path, target / name)

        self._run("assets", _asset_contents(self.job, self.prepared.request), make)


def _identity(
    request: Request,
    job: Job,
    registry: Registry,
    data: Found,
    archive: Archive | None,
) -> dict[str, Any]:
    """Return all that a bundle depends on and that is known without looking into weights."""
    return {
        "request": asdict(replace(request, images=())),
        "folder": str(job.checkpoint.folder.resolve()),
        "weights": job.checkpoint.signature(),
        "assets": _asset_contents(job, request),
        "images": _content(data),
        "archive": archive and archive.sha256,
        **_code(job, registry),
    }


def _code(job: Job, registry: Registry) -> dict[str, Any]:
    plugin = registry.plugins[job.family]
    module = plugin.module.partition(":")[0].partition(".")[0]
    return {
        "code": [code_digest("axcore"), code_digest(module)],
        "plugin": [plugin.key, plugin.package, plugin.version],
        "versions": versions(),
    }


def _content(data: Found) -> list[str]:
    return [one.sha256 for one in data.all]


def _assets(job: Job, request: Request) -> dict[str, Path]:
    folder = job.checkpoint.folder
    return {**find_assets(folder), **(find_code(folder) if request.copy_code else {})}


def _asset_contents(job: Job, request: Request) -> dict[str, str]:
    return {name: sha256(path) for name, path in _assets(job, request).items()}


def _write_texts(texts: Mapping[str, str], folder: Path) -> None:
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        if text.startswith("#!"):
            path.chmod(0o755)


def _describe(
    component: Component, findings: list[Any] | None, verified: Step | None
) -> dict[str, Any]:
    return {
        "name": component.name,
        "inputs": [asdict(port) for port in component.inputs],
        "outputs": [asdict(port) for port in component.outputs],
        "stages": [stage.name for stage in component.stages],
        "findings": findings,
        "verification": verified.metrics if verified else None,
    }


def _origin(archive: Archive | None) -> dict[str, str] | None:
    if archive is None:
        return None
    return {"name": archive.path.name, "source": archive.source, "sha256": archive.sha256}


def _head(prepared: Prepared) -> dict[str, Any]:
    """Return the part of the manifest that says what was converted, by what, and how."""
    job, checkpoint = prepared.job, prepared.job.checkpoint
    plugin = prepared.registry.plugins[job.family]
    return {
        "schema": SCHEMA,
        "model": {
            "id": job.card.id,
            "repo": job.card.repo,
            "licence": job.card.licence,
            "family": plugin.key,
            "plugin": f"{plugin.distribution} {plugin.version}".strip(),
            "task": job.task,
            "profile": asdict(job.profile),
        },
        "checkpoint": {
            "folder": str(checkpoint.folder.resolve()),
            "tensors": len(checkpoint.tensors),
            "bytes": sum(info.nbytes for info in checkpoint.tensors.values()),
            "fingerprint": checkpoint.fingerprint(),
        },
        "options": asdict(job.options),
        "vision_only": prepared.request.vision_only,
        "toolchain": prepared.chosen.toolchain.name,
        "target": prepared.chosen.target.name,
        "calibration_archive": _origin(prepared.archive),
        "embedding": asdict(prepared.embedding) if prepared.embedding else None,
        "tables": [asdict(table) for table in prepared.tables],
        "versions": versions(),
    }
