"""Frozen values that cross a hook. Importing them loads neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor, nn

    from .checkpoint import Checkpoint
    from .progress import Progress
    from .runtime.deployment import Deployment
    from .runtime.language import LanguageModel
    from .runtime.vision import VisionModel

Shape = tuple[int, ...]
Sample = Mapping[str, "np.ndarray[Any, Any]"]
"""One calibration sample: input name to array."""

GraphDType = Literal["float32", "float16", "bfloat16"]
CalibrationFormat = Literal["Image", "Numpy", "NumpyObject"]
ChannelOrder = Literal["AutoColorSpace", "RGB", "BGR"]


# What a model is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """One way of using a model: picture size and the language model's static lengths.

    Attributes:
        height, width: Picture size in px.
        prefill_len: Tokens of one prefill chunk (P).
        kv_cache_len: Slots of the key/value cache (C); prompt and answer share C + 1 positions.
        last_kv_cache_len: History lengths of further prefill groups; empty means that a prompt
            is one chunk.
        pictures: Pictures of one prompt, counted in runs of the vision graph.
        about: One line for people.
    """

    height: int
    width: int
    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()
    pictures: int = 1
    about: str = ""

    @property
    def max_prompt(self) -> int:
        """Tokens of the longest prompt: the longest history and one more chunk."""
        return max(self.last_kv_cache_len, default=0) + self.prefill_len


@dataclass(frozen=True)
class Choice:
    """An option that only some models or toolchains have; on the command line ``--<name> VALUE``.

    Attributes:
        values: What may be chosen, the default first. Of a switch: ``("no", "yes")``; on the
            command line ``--<name>`` alone then means yes. Empty where any value may be given;
            such an option has no default.
        about: What each value does and costs, for people.
    """

    values: tuple[str, ...]
    about: str = ""


@dataclass(frozen=True)
class ModelCard:
    """What a family says about one model, without reading anything.

    Attributes:
        id: The name on the command line, e.g. ``foo-vl-1b``.
        repo: Hugging Face repository; its last part names the exported files.
        architectures: Values of ``architectures[0]`` in ``config.json`` that this model may have.
        profiles: Task name to profile; the first is the default.
        aliases: Further names on the command line.
        licence: SPDX identifier or name of the weights' licence.
        parameters: Number of parameters of the published checkpoint.
        config: The published ``config.json``. Tells models of one architecture apart, and is what
            a fabricated checkpoint is made from.
        tiny: Nested overrides of `config` for a fabricated checkpoint that converts in seconds.
        prefixes: Canonical key prefix to the spellings met on disk, longest match first. Plugins
            use canonical keys only.
        text_prefixes: Canonical prefixes of the language model; every other tensor must be
            consumed by a vision stage.
        tensors: Names and shapes of all tensors (canonical keys) for a config. Checked against a
            checkpoint's headers, and used to fabricate one.
        spare: Canonical prefixes of tensors that a conversion may leave unused, be it that some
            form of the model does without them or that a checkpoint holds more than `tensors`
            lists.
        choices: Options of this model alone, by name; read with `Job.choice`.
        recognises: Tells from a config whether it is of this model, where several models share
            an architecture but not a layout. None takes every config of `architectures`.
        unsupported: Why the model cannot be converted, and what could be instead. Such a card is
            not listed; it lets a checkpoint be recognised and refused by name.
        text_model: Fields laid over the language model's part of the config to make it that of a
            plain text model (``architectures``, ``model_type`` and what differs), for tools that
            take a language model alone; None takes a field out. Needless where that part says so
            itself.
        files: Further small JSON files of the published checkpoint (name to content), such as
            ``preprocessor_config.json``, written when one is fabricated.
        tokens: Special tokens and their ids for a config: what the tokenizer of a fabricated
            checkpoint must know. None fabricates no tokenizer.
        axllm: Settings of Axera's ``axllm`` that only the family can know, in its own terms:
            ``tokenizer_type``, ``vlm_type`` and what else its ``config.json`` takes. Empty where
            it has no type for the model.
    """

    id: str
    repo: str
    architectures: tuple[str, ...]
    profiles: Mapping[str, Profile]
    aliases: tuple[str, ...] = ()
    licence: str = ""
    parameters: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    prefixes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    text_prefixes: tuple[str, ...] = ("model.", "lm_head.")
    tensors: Callable[[Mapping[str, Any]], Mapping[str, Shape]] | None = None
    spare: tuple[str, ...] = ()
    choices: Mapping[str, Choice] = field(default_factory=dict)
    recognises: Callable[[Mapping[str, Any]], bool] | None = None
    unsupported: str = ""
    text_model: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokens: Callable[[Mapping[str, Any]], Mapping[str, int]] | None = None
    axllm: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The repository's last part, e.g. ``Foo-VL-1B``."""
        return self.repo.rpartition("/")[2]


# What a conversion is asked to do ----------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the user chose; None means "as the profile says".

    Attributes:
        task: Name of a profile of the card.
        height, width: Picture size in px.
        dtype: Precision of the vision graphs, inputs and outputs included.
        opset: ONNX operator set of the vision graphs, 16 to 20.
        split: Number of files per component, "auto" to stay below 2 GB each, or None for one.
        chip, npu_mode: Target, in the toolchain's spelling.
        prefill_len, kv_cache_len, last_kv_cache_len: See `Profile`.
        embedding_formats: Files besides the raw bfloat16 table: "npy", "f32bin", "pth".
        choices: Options that only some models have, by name (see `ModelCard.choices`).
    """

    task: str | None = None
    height: int | None = None
    width: int | None = None
    dtype: GraphDType = "float32"
    opset: int = 17
    split: int | Literal["auto"] | None = None
    chip: str = "AX650"
    npu_mode: str = "NPU3"
    prefill_len: int | None = None
    kv_cache_len: int | None = None
    last_kv_cache_len: tuple[int, ...] | None = None
    embedding_formats: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One conversion: what every hook is given.

    Attributes:
        card: The model, as its family describes it.
        family: The plugin's entry-point name.
        checkpoint: Config and lazily read tensors, under canonical keys.
        task: Name of the profile in use.
        profile: The profile with the user's changes applied.
        options: What the user chose.
    """

    card: ModelCard
    family: str
    checkpoint: Checkpoint
    task: str
    profile: Profile
    options: Options

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's ``config.json``."""
        return self.checkpoint.config

    def choice(self, name: str) -> str:
        """Return the value of an option of this model: the user's, or the card's default."""
        return self.options.choices.get(name, self.card.choices[name].values[0])

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the config: nested in some layouts, flat in others."""
        for name in ("text_config", "llm_config"):
            if isinstance(nested := self.config.get(name), Mapping):
                return nested
        return self.config

    @property
    def text_width(self) -> int:
        """Hidden size of the language model."""
        return int(self.text_config["hidden_size"])


# What the vision side is made of -----------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """Where a parameter comes from: a checkpoint tensor and cheap steps applied while reading it.

    >>> Weight("patch_embed.proj.weight").reshape(1280, 1176)
    >>> Weight("attn.qkv.weight").slice(0, 1024, 2048)
    >>> Weight.concat([Weight("q.weight"), Weight("k.weight")], axis=0)
    >>> Weight("positions").project(0, ((0.5, 0.5, 0.0), (0.0, 0.5, 0.5)))
    """

    source: str | tuple[Weight, ...]
    axis: int = 0
    steps: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @classmethod
    def concat(cls, parts: Sequence[Weight], axis: int) -> Weight:
        """Join `parts` along `axis`."""
        return cls(tuple(parts), axis)

    def reshape(self, *shape: int) -> Weight:
        """View as `shape`; one entry may be -1."""
        return self._then("reshape", shape)

    def transpose(self, *order: int) -> Weight:
        """Permute the axes."""
        return self._then("transpose", order)

    def slice(self, axis: int, start: int, stop: int) -> Weight:
        """Take ``start:stop`` of `axis`."""
        return self._then("slice", (axis, start, stop))

    def project(self, axis: int, matrix: Sequence[Sequence[float]]) -> Weight:
        """Multiply `axis` by `matrix`, ``[new length, old length]``, in float32.

        Whatever is linear: picking and repeating entries (exact), interpolation, a scale.
        """
        return self._then("project", (axis, tuple(map(tuple, matrix))))

    def keys(self) -> Iterator[str]:
        """Yield the canonical checkpoint keys that are read."""
        if isinstance(self.source, str):
            yield self.source
        else:
            for part in self.source:
                yield from part.keys()

    def resolve(self, tensor_of: Callable[[str], Tensor]) -> Tensor:
        """Return the parameter; `tensor_of` reads a key (a meta tensor gives the shape)."""
        if isinstance(self.source, str):
            value = tensor_of(self.source)
        else:
            import torch

            value = torch.cat([part.resolve(tensor_of) for part in self.source], self.axis)
        for step, numbers in self.steps:
            if step == "reshape":
                value = value.reshape(numbers)
            elif step == "transpose":
                value = value.permute(numbers)
            elif step == "project":
                value = _projected(value, *numbers)
            else:
                axis, start, stop = numbers
                value = value.narrow(axis, start, stop - start)
        return value

    def _then(self, step: str, numbers: tuple[Any, ...]) -> Weight:
        return replace(self, steps=(*self.steps, (step, numbers)))


def _projected(value: Tensor, axis: int, matrix: Sequence[Sequence[float]]) -> Tensor:
    import torch

    factors = torch.tensor(matrix, dtype=torch.float32, device=value.device)
    product: Tensor = torch.tensordot(factors, value.float(), dims=([1], [axis]))
    return product.movedim(0, axis)


@dataclass(frozen=True)
class Stage:
    """A link of a component's chain: a torch module without weights, and where they come from.

    The module's ``forward`` takes the component's inputs (first stage) or what the stage before
    returned, a tensor or a tuple of tensors, and returns likewise.

    Attributes:
        name: Unique in the component, e.g. ``blocks.7``; prefixes the names of its ONNX nodes.
        module: Parameters on the meta device; buffers are real and become constants.
        keys: Prefix put before each parameter's name to form its key, or a `Weight` (or key) for
            every parameter.
        kind: Stages of one kind differ in their weights alone, so one trace serves all.
            Defaults to the name.
    """

    name: str
    module: nn.Module
    keys: str | Mapping[str, str | Weight] = ""
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.name)

    def weights(self) -> dict[str, Weight]:
        """Return the origin of every parameter, by parameter name in the module's order."""
        names = [name for name, _ in self.module.named_parameters()]
        if isinstance(self.keys, str):
            return {name: Weight(self.keys + name) for name in names}
        found = {name: self.keys[name] for name in names}
        return {name: Weight(key) if isinstance(key, str) else key for name, key in found.items()}


@dataclass(frozen=True)
class Port:
    """A named input or output with static shape.

    A float port of dtype "float32" takes the precision chosen for the conversion.
    """

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class Calibration:
    """How a component's samples are stored, and what the target makes of them.

    Attributes:
        format: "Image" (PNG pictures, uint8), "Numpy" (one array a file) or "NumpyObject" (a
            dict of arrays a file).
        mean, std: Per channel, in units of 0..255, applied by the target to "Image" samples;
            `std` divides.
        tensor_format: The channel order in which the target hands a picture to the graph.
        src_dtype, src_layout: What the board feeds, in Pulsar2's spelling; None leaves the default.
        src_normalised: The board feeds values that are normalised already, so the target applies
            `mean` and `std` to samples alone.
        size: Samples the target uses at most; -1 for all.
        minimum: With fewer samples the result is not to be trusted.
    """

    format: CalibrationFormat = "Numpy"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tensor_format: ChannelOrder = "AutoColorSpace"
    src_dtype: str | None = None
    src_layout: str | None = None
    src_normalised: bool = False
    size: int = 32
    minimum: int = 4

    def graph_input(self, sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return what the graph receives for one stored array.

        "Image" samples, uint8 ``[H, W, 3]``, become float32 ``[1, 3, H, W]`` with mean and
        standard deviation applied; every other format is fed as it is.
        """
        if self.format != "Image":
            return sample
        import numpy as np

        mean = np.asarray(self.mean or (0.0,), np.float32)
        std = np.asarray(self.std or (1.0,), np.float32)
        normalised: np.ndarray[Any, Any] = (sample.astype(np.float32) - mean) / std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


@dataclass(frozen=True)
class Component:
    """One vision graph: a chain of stages between named ports.

    Attributes:
        name: Short name, e.g. ``vision``.
        stem: Name of the exported files without suffix.
        stages: In the order data flows.
        inputs, outputs: In the order of the first stage's arguments and the last stage's results.
        preprocess: Turns `pictures_per_sample` RGB pictures into samples, arrays in the form the
            target reads (see `Calibration.graph_input`). None when the inputs are not pictures.
        pictures_per_sample: How many pictures one call of `preprocess` takes.
        calibration: How samples are stored.
        build_options: Toolchain name to settings in that toolchain's own terms, laid over what
            it writes by default.
    """

    name: str
    stem: str
    stages: tuple[Stage, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    preprocess: Callable[[Sequence[Image]], Iterable[Sample]] | None = None
    pictures_per_sample: int = 1
    calibration: Calibration = Calibration()
    build_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the first output: tokens, where it feeds the language model."""
        return math.prod(self.outputs[0].shape[:-1])


# What the language model needs -------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding:
    """The token embedding.

    Attributes:
        key: Canonical key.
        shape: ``[vocabulary, hidden]``.
        scale: What the model multiplies looked-up rows by, and who runs it still has to; 1 for
            most.
        factor: What the rows are multiplied by while they are written; 1 copies them.
    """

    key: str
    shape: Shape
    scale: float = 1.0
    factor: float = 1.0


@dataclass(frozen=True)
class LlmCheckpoint:
    """A checkpoint of the language model alone, to be written for a builder.

    Attributes:
        config: Its ``config.json``.
        tensors: Name in the new checkpoint to canonical key and factor. A tensor with factor 1
            is copied; another is multiplied in float32 and stored so, as the product would not
            fit the original precision.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class LlmBuildArgs:
    """Arguments of a language-model build, in the terms of Pulsar2's ``llm_build``.

    Attributes:
        prefill_len, kv_cache_len, last_kv_cache_len: See `Profile`.
        model_type: Type name given to the builder; None lets it read ``config.json``.
        hidden_state_type, weight_type: Precisions.
        parallel: Worker processes.
        check_level: 0 none, 1 cosine of each layer, 2 generate.
        environment: Variables the builder must see.
        checkpoint: Written into the bundle for the builder to read; None lets it read the
            original.
        notes: What the user must know before trusting the build, a line each.
    """

    prefill_len: int
    kv_cache_len: int
    last_kv_cache_len: tuple[int, ...] = ()
    model_type: str | None = None
    hidden_state_type: str = "bf16"
    weight_type: str = "s8"
    parallel: int = 32
    check_level: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    checkpoint: LlmCheckpoint | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, profile: Profile, **others: Any) -> LlmBuildArgs:
        """Take the lengths from `profile`; `others` are further attributes."""
        lengths = (profile.prefill_len, profile.kv_cache_len, profile.last_kv_cache_len)
        return cls(*lengths, **others)


@dataclass(frozen=True)
class Prompt:
    """A conversation made ready for the language model.

    Attributes:
        input_ids: int64 ``[n]``, placeholders included.
        position_ids: int64 ``[1, n]``, or ``[3, n]`` (temporal, height, width).
        vision_rows: Component name to the positions in `input_ids` (int64 ``[m]``) that its rows
            replace. The rows of all runs follow one another; those beyond m are padding.
        pictures: Component name to the samples it is run on, in order, each in the form that
            `make_calib` yields. Components behind it receive its features.
        stop_ids: Tokens that end an answer, beside those that the checkpoint configures.
    """

    input_ids: np.ndarray[Any, Any]
    position_ids: np.ndarray[Any, Any]
    vision_rows: Mapping[str, np.ndarray[Any, Any]]
    pictures: Mapping[str, Sequence[Sample]]
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoder:
    """The language model as stages, for toolchains that build its layers here.

    Attributes:
        kind: Type name that begins the names of the layer files, e.g. ``llama``.
        layers: One stage per layer. ``forward(K_cache, V_cache, indices, input, mask)`` with
            ``[1, h, D]`` twice, int64 ``[r, n]``, ``[1, n, H]`` and ``[1, n, h + n]`` returns the
            cache rows of the n tokens, ``[1, n, D]`` twice, and the state behind the layer. All
            floats are float32; h and n differ from call to call.
        head: ``forward(input)`` takes ``[1, 1, H]`` through the final norm and the output head
            and returns logits ``[1, 1, vocabulary]``.
        width: H, hidden size.
        cache_width: D, key/value heads times head size.
        position_rows: r of a prefill chunk: 1, or 3 (temporal, height, width). A single token
            always comes with r = 1.
        checkpoint: Where the stages' weights are read from.
    """

    kind: str
    layers: tuple[Stage, ...]
    head: Stage
    width: int
    cache_width: int
    position_rows: int
    checkpoint: Checkpoint


# What a toolchain is -----------------------------------------------------------------------------


@dataclass(frozen=True)
class GraphFile:
    """An exported ONNX file as a toolchain sees it.

    Attributes:
        stem: File name without suffix.
        inputs, outputs: Its ports.
        calibration: How its samples are stored.
        archive: Name of the calibration archive, relative to the bundle.
        samples: Number of samples in the archive; 0 where none was made.
        build_options: See `Component.build_options`.
        component: Name of the component it belongs to.
    """

    stem: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calibration: Calibration
    archive: str
    samples: int
    build_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    component: str = ""


@dataclass(frozen=True)
class BuildRequest:
    """Everything a toolchain needs to know of a bundle; stored in its manifest.

    Attributes:
        model: Id of the model.
        checkpoint: Folder the language model's builder reads: absolute, or below the bundle.
        chip, npu_mode: Target.
        task: Name of the profile.
        graphs: The vision side.
        llm: The language model's build.
        decoder_layers: Number of decoder layers, so that a finished build can be told.
    """

    model: str
    checkpoint: str
    chip: str
    npu_mode: str
    task: str
    graphs: tuple[GraphFile, ...]
    llm: LlmBuildArgs
    decoder_layers: int


@dataclass(frozen=True)
class Availability:
    """Whether a toolchain can run here: what was found, and what would make it available."""

    available: bool
    detail: str
    remedy: str = ""


class Toolchain(Protocol):
    """Turns a bundle into what a device runs."""

    @property
    def name(self) -> str:
        """The value of ``--toolchain``."""

    @property
    def options(self) -> Mapping[str, Choice]:
        """Options of its builds, by name."""

    def availability(self, command: str | None = None) -> Availability:
        """Say whether the tool is here; `command` overrides how it is called."""

    def checks(self) -> Mapping[str, Availability]:
        """Return what else matters on this machine, by name, for `axcore doctor`."""

    def reads(self, request: BuildRequest, name: str) -> bool:
        """Say whether a build reads that file of the bundle, which must then be as written.

        Configurations and scripts are there to be edited: of those it says no.
        """

    def prepare(self, request: BuildRequest, options: Mapping[str, str] = ...) -> Mapping[str, str]:
        """Return configuration files and scripts for the bundle (name to text); runs no tool.

        A file whose text begins with ``#!`` is made executable. A conversion gives no `options`;
        they come with the build.
        """

    def build(
        self,
        bundle: Path,
        request: BuildRequest,
        progress: Progress,
        *,
        command: str | None = None,
        options: Mapping[str, str] = ...,
        decoder: Callable[[], Decoder],
    ) -> list[Path]:
        """Run the tool on `bundle` and return the files made; finished steps are not repeated.

        Args:
            bundle: Folder with graphs, configurations and calibration archives.
            request: What to build.
            progress: Where messages go.
            command: How the tool is called; None for its usual name.
            options: Of those that it declares: what was given, and defaults.
            decoder: Opens the checkpoint and asks the family for the language model's stages, for
                a toolchain that builds the layers itself.

        Raises:
            UsageError: An option is missing, or does not fit the bundle.
            ToolchainError: The tool is missing or a step failed (message names the step).
        """


class Backend(Protocol):
    """Runs a bundle: its vision side and its language model."""

    @property
    def name(self) -> str:
        """The value of ``--backend``."""

    @property
    def options(self) -> Mapping[str, Choice]:
        """Options of its own, by name."""

    def availability(self) -> Availability:
        """Say whether it can run here."""

    def reads(self, name: str) -> bool:
        """Say whether it loads that file of a bundle; answers go on only while those stay."""

    def vision(self, deployment: Deployment, options: Mapping[str, str]) -> VisionModel:
        """Return what runs the pictures; it opens its files when it is first used.

        Args:
            deployment: What is run.
            options: Of those that it declares: what was given, and defaults.

        Raises:
            BundleError: Files are missing or damaged.
            ToolchainError: A library that it needs does not load.
        """

    def language(self, deployment: Deployment, options: Mapping[str, str]) -> LanguageModel:
        """Open what runs the language model; arguments and errors as `vision` has them.

        Raises:
            BundleError: Files are of other lengths than the manifest says, too.
        """
