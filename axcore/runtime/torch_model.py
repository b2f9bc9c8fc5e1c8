"""Vision stages and decoders of transformers in PyTorch, with weights from a checkpoint."""

from __future__ import annotations

import copy
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..checkpoint.quantised import float_tensor
from ..errors import CheckpointError, ToolchainError, UnsupportedModel, UsageError
from ..language.layer_types import FULL
from ..language.standalone import (
    BODY,
    EMBEDDING,
    HEAD,
    folded_scale,
    standalone_config,
    standalone_names,
)
from .language import Columns
from .masks import borders, chunk_mask, runs
from .vision import VisionChain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..component import Component, Port, Sample, Stage
    from ..job import Job
    from .deployment import Deployment
    from .vision import Part, Run

Array = np.ndarray[Any, Any]
SLIDING = "sliding_attention"


class Place(NamedTuple):
    """A device and a float dtype."""

    device: torch.device
    dtype: torch.dtype

    def put(self, value: Tensor) -> Tensor:
        """Return `value` on the device; only float values change their dtype."""
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)


def place_of(device: str, dtype: str) -> Place:
    """Return the place for a device and dtype, after checking that the device is available.

    Args:
        device: "cpu", "cuda" or "npu".
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        UsageError: The device is not available.
    """
    hint = "use --device cpu, or install the driver and a PyTorch built for the device"
    if device == "npu":
        try:
            import_module("torch_npu")  # registers the device with torch
        except (ImportError, OSError) as error:
            raise UsageError(
                f"--device npu requires torch_npu, which does not load\n  {error}",
                hint="install CANN and the torch_npu for this version of PyTorch, source CANN's"
                " set_env.sh, or use --device cpu",
            ) from error
    if not getattr(torch, device).is_available():
        raise UsageError(f"PyTorch {torch.__version__} finds no device `{device}`", hint=hint)
    return Place(torch.device(device), getattr(torch, dtype))


def with_weights(deployment: Deployment) -> Job:
    """Return the job with the checkpoint that the bundle was made from.

    Raises:
        CheckpointError: It is missing or damaged, or its weights have changed.
    """
    folder = Path(deployment.bundle.manifest.checkpoint.folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"the checkpoint that {deployment.folder} was made from is missing\n  folder: {folder}",
            hint="put it back, or convert again; the other backends do not need it",
        )
    checkpoint = Checkpoint.open(folder, deployment.job.card.layout.prefixes)
    if deployment.weights not in ("", checkpoint.fingerprint()):
        raise CheckpointError(
            f"the checkpoint has changed since {deployment.folder} was made from it\n"
            f"  folder: {folder}",
            hint="run the same `axcore convert` again",
        )
    return replace(deployment.job, checkpoint=checkpoint)


# Vision ------------------------------------------------------------------------------------------


class TorchVision(VisionChain):
    """Runs the unpatched stages of a family's `export_vision`.

    Args:
        job: The bundle's job, with weights (see `with_weights`).
    """

    def __init__(self, deployment: Deployment, job: Job, place: Place) -> None:
        super().__init__(deployment)
        self._job, self._place = job, place

    def _opened(self) -> list[tuple[str, Part, Run]]:
        components: list[Component] = self._deployment.hook("export_vision", job=self._job)
        opened: list[tuple[str, Part, Run]] = []
        count = sum(len(component.stages) for component in components)
        progress = self._deployment.progress
        with self._job.checkpoint, progress.task("load vision", count, "stages") as task:
            for component in components:
                modules: list[nn.Module] = []
                opened.append(
                    (component.name, component, partial(self._outputs, component, modules))
                )
                for stage in component.stages:
                    modules.append(self._loaded(stage))
                    task.advance()
        return opened

    def _loaded(self, stage: Stage) -> nn.Module:
        """Return a stage's module with weights."""
        read, put = self._job.checkpoint.tensor, self._place.put
        # Cloned, because a slice would keep the whole tensor in memory.
        weights = {name: put(w.resolve(read)).clone() for name, w in stage.weights().items()}
        module = copy.deepcopy(stage.module)
        # Not strict, because buffers are in the module already.
        module.load_state_dict(weights, strict=False, assign=True)
        return module.to(*self._place).eval()

    def _outputs(
        self, component: Component, modules: list[nn.Module], feed: Sample
    ) -> dict[str, Array]:
        state = tuple(self._input(component, port, feed) for port in component.inputs)
        with torch.inference_mode():
            for module in modules:
                result = module(*state)
                state = (result,) if isinstance(result, Tensor) else tuple(result)
        names = [port.name for port in component.outputs]
        return dict(zip(names, map(_array, state), strict=True))

    def _input(self, component: Component, port: Port, feed: Sample) -> Tensor:
        array = component.calibration.graph_input(feed[port.name])
        return self._place.put(torch.tensor(array).reshape(port.shape))


def _array(value: Tensor) -> Array:
    array: Array = (value.float() if value.is_floating_point() else value).cpu().numpy()
    return array


# Language ----------------------------------------------------------------------------------------


class TorchLanguage:
    """Implements `LanguageModel` with transformers.

    The class is the one of the whole checkpoint if transformers has it, else of the plain text
    model that the family names. Rotary positions that depend on the prompt's length are computed by
    that class for each prompt, not fixed in advance as in layer models.

    Args:
        job: The bundle's job, with weights (see `with_weights`).

    Raises:
        CheckpointError: Tensors are missing, damaged or unknown to the class.
        ToolchainError: transformers does not load.
        UnsupportedModel: transformers has no such class.
    """

    def __init__(self, deployment: Deployment, job: Job, place: Place) -> None:
        llm, self._place = deployment.llm, place
        self._columns = _columns(deployment)
        # Some classes scale whatever rows they are given; ours are scaled already.
        self._scaled = deployment.embedding.scale * deployment.embedding.factor != 1
        with job.checkpoint:
            self._body, self._head = _decoder(job, deployment, place)
        self._cache = self._empty_cache()
        self._batch = 1
        self.context = llm.kv_cache_len + 1
        self.filled = 0
        self.max_batch = sys.maxsize

    def resume(self, known: int, prompt: int, blocks: Array | None = None) -> int:
        """Keep the known positions; caches that cannot be cropped start empty."""
        if not borders(runs(blocks, prompt))[known]:
            known = int(np.flatnonzero(borders(runs(blocks, prompt))[:known])[-1])
        if known and self._crop(known):
            self.filled = known
        else:
            self._cache, self.filled = self._empty_cache(), 0
        return self.filled

    def prefill(self, rows: Array, positions: Array, blocks: Array | None = None) -> Array:
        """Append all rows in one run."""
        if len(rows) != self._batch:
            self._cache, self.filled, self._batch = self._empty_cache(), 0, len(rows)
        places = torch.tensor(positions, device=self._place.device)[:, None]
        numbered = runs(blocks, rows.shape[1])
        masks = self._masks(numbered) if numbered.any() else None
        return self._run(rows, places.expand(-1, len(rows), -1), masks)

    def decode(self, rows: Array, position: int) -> Array:
        """Append one row per prompt."""
        places = torch.full((1, len(rows), 1), position, device=self._place.device)
        return self._run(rows[:, None], places, None)

    def _run(self, rows: Array, places: Tensor, masks: Any) -> Array:
        """Run rows ``[b, n, columns]`` at places int64 ``[r, b, n]``; no masks are causal ones."""
        before, self.filled = self.filled, 0  # after an interrupted run, the caches are incomplete
        state = self._place.put(torch.tensor(rows[..., : self._columns.width]))
        with torch.inference_mode(), self._adding(rows, state):
            result = self._body(
                inputs_embeds=state,
                attention_mask=masks,
                position_ids=places if len(places) > 1 else places[0],
                past_key_values=self._cache,
                use_cache=True,
            )
            logits = self._head(result.last_hidden_state[:, -1])
        self.filled = before + rows.shape[1]
        return _array(logits)

    @contextmanager
    def _adding(self, rows: Array, state: Tensor) -> Iterator[None]:
        """Add what the rows say to the states behind layers, during one run."""
        with ExitStack() as stack:
            if self._scaled:
                first = self._body.layers[0].register_forward_pre_hook(
                    partial(_instead, state), with_kwargs=True
                )
                stack.callback(first.remove)
            for layer, columns in self._columns.added.items():
                if (added := rows[..., columns]).any():
                    hook = partial(_add, self._place.put(torch.tensor(added)))
                    handle = self._body.layers[layer].register_forward_hook(hook)
                    stack.callback(handle.remove)
            yield

    def _masks(self, blocks: Array) -> Any:
        """Return masks of which tokens see which, in the form that transformers' classes take.

        That is a mask ``[1, 1, n, filled + n]``, or a mapping from layer type to such masks where
        layers are of several types.

        Raises:
            UnsupportedModel: The class is not known to take masks for its layer types.
        """
        config, shape = self._body.config, (len(blocks), self.filled)
        window = getattr(config, "sliding_window", None)
        windows = {FULL: None, SLIDING: window}
        types = set(getattr(config, "layer_types", None) or [FULL if window is None else SLIDING])
        if not types <= windows.keys():
            raise UnsupportedModel(
                f"{type(self._body).__name__} has layers of the types {', '.join(sorted(types))},"
                " for which tokens that see each other are not known to transformers",
                hint="use another --backend",
            )
        masks = {
            name: self._place.put(
                torch.tensor(chunk_mask(shape, self.filled, len(blocks), blocks, windows[name]))
            )[None, None]
            for name in types
        }
        return (
            masks if getattr(config, "layer_types", None) and len(types) > 1 else masks.popitem()[1]
        )

    def _empty_cache(self) -> Any:
        from transformers import DynamicCache

        # Layers with a window forget what is behind it. Where all layers attend, the cache keeps
        # everything, so that it can be cropped, and masks say what a window hides.
        types = set(getattr(self._body.config, "layer_types", None) or [])
        return (
            DynamicCache() if types <= {FULL, SLIDING} else DynamicCache(config=self._body.config)
        )

    def _crop(self, length: int) -> bool:
        """Keep the first `length` positions; return False if the caches cannot be cropped."""
        from transformers.cache_utils import DynamicLayer

        layers = self._cache.layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            return False  # nor do all classes read several tokens behind a state
        # Layer by layer: an interrupted run has filled some layers and not others.
        for layer in layers:
            if surplus := layer.get_seq_length() - length:
                layer.crop(-surplus)
        return True


def _columns(deployment: Deployment) -> Columns:
    """Return the columns of rows, of which transformers' classes take states and what is added.

    Raises:
        UnsupportedModel: There are further tables.
    """
    if deployment.tables:
        raise UnsupportedModel(
            f"layers of `{deployment.job.card.id}` take rows of further tables, which the backend"
            " `torch` does not feed to transformers' class",
            hint="use another --backend",
        )
    return Columns(deployment)


def _instead(state: Tensor, module: nn.Module, given: Any, named: Any) -> Any:
    """Give the first layer the rows themselves, in place of what the body has made of them."""
    del module
    if given:
        return (state, *given[1:]), named
    return given, {**named, "hidden_states": state}


def _add(added: Tensor, module: nn.Module, given: Any, returned: Any) -> Any:
    """Add to what a decoder layer returned: a tensor, or a tuple that begins with it."""
    del module, given
    if isinstance(returned, Tensor):
        return returned + added
    return (returned[0] + added, *returned[1:])


def _decoder(job: Job, deployment: Deployment, place: Place) -> tuple[Any, Any]:
    """Return body and head with weights; each tensor is read once."""
    embedding = deployment.embedding.key
    with torch.device("meta"):
        whole = _empty_model(job)
    body, head = whole.get_decoder(), whole.get_output_embeddings()
    body.embed_tokens = None  # rows are looked up by the caller
    names = standalone_names(job, embedding)
    wanted = {BODY + name: name for name in body.state_dict()}
    _check_names(job, names.keys() - {HEAD, BODY + EMBEDDING}, wanted.keys())

    def load(name: str, key: str) -> Tensor:
        value, scale = float_tensor(job.checkpoint, key), folded_scale(name, job.text_config)
        task.advance()
        return place.put(value if scale == 1 else value.float() * scale)

    with deployment.progress.task("load language model", len(wanted) + 1, "tensors") as task:
        body.load_state_dict({own: load(n, names[n]) for n, own in wanted.items()}, assign=True)
        head.weight = nn.Parameter(load(HEAD, names.get(HEAD, embedding)), requires_grad=False)
    for name, module in list(body.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            body.set_submodule(name, type(module)(body.config).to(place.device))
    return body.eval(), head.eval()


def _check_names(job: Job, found: set[str], wanted: Any) -> None:
    if odd := sorted(found ^ wanted):
        verb = "lacks" if odd[0] in wanted else "holds"
        raise CheckpointError(
            f"the language model of {job.checkpoint.folder} is not what transformers expects\n"
            f"  it {verb} `{odd[0]}`" + (f" and {len(odd) - 1} more" if odd[1:] else ""),
            hint="check whether config.json was edited, or install another version of transformers",
        )


def _empty_model(job: Job) -> Any:
    """Return the model without weights: the whole checkpoint's class, or the plain text model."""
    own = _class(str(job.config["architectures"][0]))
    if own is not None:
        return own(own.config_class(**job.config))
    config = standalone_config(job)
    plain = _class(config["architectures"][0])
    if plain is None:
        raise UnsupportedModel(
            f"transformers has no `{config['architectures'][0]}`, which the language model of"
            f" `{job.card.id}` is",
            hint="install a later transformers, or use another --backend",
        )
    return plain(plain.config_class(**config))


def _class(name: str) -> Any:
    """Return a model class of transformers; code from the checkpoint is never executed."""
    try:
        import transformers

        found = getattr(transformers, name, None)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a broken torchvision beside it
        raise ToolchainError(
            f"transformers does not load\n  {error}",
            hint="pip install 'axcore[evaluate]'; if torchvision is broken, uninstall it",
        ) from error
    fitting = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if fitting else None
