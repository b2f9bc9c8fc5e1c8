"""The contract between the core and its plugins, in pipeline order.

An implementation is a module-level function of the same name marked with `axcore.hookimpl`; it
takes only the arguments it uses. One family answers per conversion, with the defaults of
`axcore.defaults` behind it, so no plugin asks whether a model is its own. What comes back is
checked, and a violation is reported under the plugin's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from PIL.Image import Image

    from .component import Component, Sample, Stage
    from .job import Job
    from .language_model import Decoder, Embedding, LlmBuildArgs, Prompt
    from .model_card import ModelCard
    from .runtime.contract import Backend
    from .toolchains.contract import Toolchain

PROJECT = "axcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def model_cards() -> Iterable[ModelCard]:
    """Register the models of a family.

    Called at discovery, so also by ``axcore --help``: import neither torch nor transformers.
    Required of a family; a plugin that only brings a toolchain leaves it out.
    """
    return ()


@hookspec(firstresult=True)
def export_vision(job: Job) -> Sequence[Component] | None:
    """Describe the vision side as components, each a chain of stages.

    Called once per conversion, before `patch_attention` and `split_graph`. Required of a family.
    Nothing is loaded here: parameters live on the meta device.

    Args:
        job: The checkpoint (config and tensor headers), the chosen profile and options.

    Returns:
        Components in the order data flows through them. The last one's first output holds the
        rows for the language model: float ``[..., rows, hidden]``.

    Raises:
        UnsupportedProfile: The image size does not fit the tower (the message says which do).
    """


@hookspec(firstresult=True)
def patch_attention(job: Job, stage: Stage) -> Stage | None:
    """Return `stage` with its attention in a form the target keeps.

    Called for one stage of every kind, before tracing; the result stands for the whole kind.
    Parameter names, inputs and outputs must stay as they are. Patching twice equals patching once,
    and the patched stage computes what the plain one does.

    The default replaces scaled-dot-product attention and `torch.nn.MultiheadAttention` by explicit
    matmul, softmax, matmul.
    """


@hookspec(firstresult=True)
def split_graph(job: Job, component: Component) -> Sequence[int] | None:
    """Say where to cut a component: ascending indices of the stages that begin a new part.

    Called once per component, before anything is traced. The default cuts where
    ``Options.split`` asks: into N parts of nearly equal bytes, or, for "auto", into as few parts
    as stay below 2 GB each.
    """


@hookspec(firstresult=True)
def make_calib(job: Job, component: Component, images: Sequence[Image]) -> Iterator[Sample] | None:
    """Turn images into calibration samples in the form the target reads.

    Called from several threads at once, each time with ``component.images_per_sample`` RGB
    images. The default is the component's own preprocessing.

    Yields:
        ``{input name: array}``; for `Calibration.format` "Image" uint8 ``[H, W, 3]`` whose
        channel 0 is what the graph's channel 0 receives, else the graph's input itself.
    """


@hookspec(firstresult=True)
def embed_extract(job: Job) -> Embedding | None:
    """Name the token embedding: canonical key, shape and scale.

    Called once per conversion; nothing is read here. The default looks for the known key names.
    """


@hookspec(firstresult=True)
def llm_build_args(job: Job) -> LlmBuildArgs | None:
    """Return the arguments of the language-model build.

    Called once per conversion. The default takes the lengths from the profile.
    """


@hookspec(firstresult=True)
def decoder(job: Job) -> Decoder | None:
    """Return the language model as stages: one per layer, and one for final norm and head.

    Called by a build whose toolchain makes the decoder layers here rather than by a vendor's
    builder. `Decoder` says what the stages take and return. The default covers Llama
    and what is built like it, as config and tensors say.

    Raises:
        UnsupportedModel: The layers are of a kind that is not built here.
    """


@hookspec(firstresult=True)
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt | None:
    """Turn chat messages into ids, positions and the samples each vision component is run on.

    Called by every command that runs a model, on a board too: import neither torch nor
    transformers. Of the job's checkpoint only config and folder are to be used; the weights may
    not be there.

    Args:
        job: What was converted.
        messages: ``{"role": ..., "content": text or parts}`` in the form of transformers' chat
            templates; a part is ``{"type": "text", "text": ...}``, ``{"type": "image", "image":
            image or file}`` or, where the family takes it, ``{"type": "video", "video":
            [images or files], "fps": frames per second}``.

    Raises:
        CheckpointError: The tokenizer is missing or does not fit the model.
        ImageError: An image cannot be read.
        UsageError: The model does not take a part of that type.
    """


@hookspec
def toolchains() -> Iterable[Toolchain]:
    """Register toolchains. Called at discovery: import nothing heavy."""
    return ()


@hookspec
def backends() -> Iterable[Backend]:
    """Register what can run a bundle. Called when a model is run: import nothing heavy."""
    return ()
