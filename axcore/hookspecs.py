"""The contract between the core and its plugins, in pipeline order.

An implementation is a module-level function of the same name marked with `axcore.hookimpl`; it
takes only the arguments it uses. Each conversion calls the hooks of one family, and those of
`axcore.defaults` where the family has none, so plugins never test whether a model is theirs.
Results are checked, and errors name the plugin.
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

CONTRACT = 2
"""Version of this contract. It grows by one when something is added that a plugin may rely on.

Since 2: `DecoderLayer` with its caches, windows and inputs; `Port.layer`, `Component.after` and
`Component.media`; `Prompt.blocks` and an array of `Prompt.vision_rows` for each run; several tables
from `embed_extract`.
"""

OLDEST_CONTRACT = 1
"""The oldest version that is still read: what plugins of it expect is as it was."""

DECLARATION = "AXCORE_CONTRACT"
"""Name of the number by which a plugin's module says for which version it is written; 1 without."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def model_cards() -> Iterable[ModelCard]:
    """Register the models of a family.

    Called at discovery, even by ``axcore --help``: do not import torch or transformers here.
    Required of a family; plugins that only provide a toolchain leave it out.
    """
    return ()


@hookspec(firstresult=True)
def export_vision(job: Job) -> Sequence[Component] | None:
    """Describe the vision side as components, each a chain of stages.

    Called once per conversion, before `patch_attention` and `split_graph`. Required of a family.
    No weights are loaded here: parameters are on the meta device.

    Args:
        job: The checkpoint (config and tensor headers), the chosen profile and options.

    Returns:
        Components in the order data flows through them: one chain, or several (`Component.after`).
        The first output of a chain's last component holds the rows for the language model: float
        ``[..., rows, hidden]``. Its further outputs may be added behind decoder layers
        (`Port.layer`).

    Raises:
        UnsupportedProfile: The tower cannot take the image size (the message says which it can).
    """


@hookspec(firstresult=True)
def patch_attention(job: Job, stage: Stage) -> Stage | None:
    """Return `stage` with its attention in a form that the target supports.

    Called for one stage of every kind, before tracing; all stages of the kind use the result.
    Parameter names, inputs and outputs must not change. The patched stage must compute the same as
    the original, and patching it again must change nothing.

    The default replaces scaled-dot-product attention and `torch.nn.MultiheadAttention` with
    explicit matmul, softmax, matmul.
    """


@hookspec(firstresult=True)
def split_graph(job: Job, component: Component) -> Sequence[int] | None:
    """Return where to split a component: ascending indices of the stages that begin a new part.

    Called once per component, before tracing. The default follows ``Options.split``: N parts of
    nearly equal size in bytes, or, for "auto", the fewest parts that are below 2 GB each.
    """


@hookspec(firstresult=True)
def make_calib(job: Job, component: Component, images: Sequence[Image]) -> Iterator[Sample] | None:
    """Turn images into calibration samples in the form that the target reads.

    Called from several threads at once, each time with ``component.images_per_sample`` RGB
    images; for a component of media "array", with as many arrays, float32. The default calls
    ``component.preprocess``.

    Yields:
        ``{input name: array}``; for `Calibration.format` "Image" uint8 ``[H, W, 3]`` whose
        channel 0 is what the graph's channel 0 receives, else the graph's input itself.
    """


@hookspec(firstresult=True)
def embed_extract(job: Job) -> Embedding | Sequence[Embedding] | None:
    """Describe the token embedding: canonical key, shape and scale.

    Called once per conversion; no tensor is read here. The default looks for common key names.
    Models with further tables return them behind the embedding, each with a name of its own.
    """


@hookspec(firstresult=True)
def llm_build_args(job: Job) -> LlmBuildArgs | None:
    """Return the arguments of the language-model build.

    Called once per conversion. The default takes the lengths from the profile.
    """


@hookspec(firstresult=True)
def decoder(job: Job, embedding: Embedding) -> Decoder | None:
    """Return the language model as stages: one per layer, and one for final norm and head.

    Called by builds whose toolchain has no language-model builder of its own. `Decoder` specifies
    inputs and outputs of the stages. The default supports the architectures that
    ``docs/decoders.md`` lists and refuses every other, and every setting that it does not know.

    Args:
        job: The conversion that made the bundle, its checkpoint with weights.
        embedding: What `embed_extract` returned; of several the first. The default looks for the
            layers beside it.

    Raises:
        UnsupportedModel: The model has layers of another kind.
    """


@hookspec(firstresult=True)
def prepare_prompt(job: Job, messages: Sequence[dict[str, Any]]) -> Prompt | None:
    """Turn chat messages into ids, positions and the samples that each vision component runs on.

    Called by every command that runs a model, also on a board: do not import torch or
    transformers here. Use only config and folder of the job's checkpoint; its weights may be
    missing.

    Args:
        job: The conversion that made the bundle.
        messages: ``{"role": ..., "content": text or parts}`` in the form of transformers' chat
            templates; a part is ``{"type": "text", "text": ...}``, ``{"type": "image", "image":
            image or file}`` or, where the family takes it, ``{"type": "video", "video":
            [images or files], "fps": frames per second}``. Text stays text, whatever markers are
            in it, unless it is given as `axcore.Control`: `axcore.message_parts` and
            `axcore.encode_prompt` see to both.

    Raises:
        CheckpointError: The tokenizer is missing or does not fit the model.
        ImageError: An image cannot be read.
        UsageError: A message has a role, or a part of a type, that the model does not support.
    """


@hookspec
def toolchains() -> Iterable[Toolchain]:
    """Register toolchains. Called at discovery: import nothing heavy."""
    return ()


@hookspec
def backends() -> Iterable[Backend]:
    """Register backends, which run bundles. Called to run a model: import nothing heavy."""
    return ()
