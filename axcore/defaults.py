"""A built-in plugin: what happens where a family leaves a hook out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image

    from .component import Component, Sample, Stage
    from .job import Job
    from .language_model import Decoder, Embedding, LlmBuildArgs
    from .runtime.contract import Backend
    from .toolchains.contract import Toolchain


@hookimpl(trylast=True)
def patch_attention(stage: Stage) -> Stage:
    """Write fused attention out as matmul, softmax, matmul."""
    from .graph.attention import explicit

    return explicit(stage)


@hookimpl(trylast=True)
def split_graph(job: Job, component: Component) -> Sequence[int]:
    """Cut where ``Options.split`` asks."""
    from .graph.split import cuts, stage_bytes

    return cuts(stage_bytes(component, job.options.itemsize), job.options.split)


@hookimpl(trylast=True)
def make_calib(component: Component, images: Sequence[Image]) -> Iterator[Sample] | None:
    """Let the component preprocess the images."""
    return iter(component.preprocess(images)) if component.preprocess else None


@hookimpl(trylast=True)
def embed_extract(job: Job) -> Embedding:
    """Look for the known key names; the scale is the architecture's."""
    from .language.embedding import default_embedding

    return default_embedding(job)


@hookimpl(trylast=True)
def llm_build_args(job: Job) -> LlmBuildArgs:
    """Take the lengths from the profile."""
    from .language_model import LlmBuildArgs

    return LlmBuildArgs.of(job.profile)


@hookimpl(trylast=True)
def decoder(job: Job, embedding: Embedding) -> Decoder:
    """Describe one of the listed architectures, as config and tensors say."""
    from .language.decoder import default_decoder

    return default_decoder(job, embedding)


@hookimpl
def toolchains() -> list[Toolchain]:
    """Bring Axera's Pulsar2, and the embedded toolchain."""
    from .toolchains.onnx import Onnx
    from .toolchains.pulsar2 import Pulsar2

    return [Pulsar2(), Onnx()]


@hookimpl
def backends() -> list[Backend]:
    """Bring ONNX Runtime for what the embedded toolchain builds, boards' own engine, PyTorch."""
    from .runtime.backends import EngineBackend
    from .runtime.torch_backend import TorchBackend

    return [EngineBackend("onnx", ".onnx"), EngineBackend("axengine", ".axmodel"), TorchBackend()]
