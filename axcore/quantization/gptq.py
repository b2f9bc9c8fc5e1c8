"""Quantise a language model by GPTQ: extract it, run gptqmodel, and merge the result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from filelock import FileLock, Timeout

from ..checkpoint import Checkpoint
from ..checkpoint.assets import TEXT_ASSETS, find_assets
from ..checkpoint.fabricate import MARKER
from ..checkpoint.writer import write_json
from ..errors import BudgetError, BundleError, CheckpointError, ToolchainError, UsageError
from ..files import appearing, explained_full_disk
from ..language.checkpoint import write_checkpoint
from ..pipeline.job import open_job
from ..plain import shown
from ..request import Request
from .environment import Worker, find_python
from .language import Language, check_group_size, language_of
from .merge import REPORT, merge
from .text import Text, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..job import Job
    from ..model_card import ModelCard
    from ..plugins import Registry
    from ..progress import Progress

Device = Literal["cpu", "cuda"]
BITS = (4, 8)
MAX_WEIGHT_ERROR = 0.5
"""Maximum relative error of a matrix; rounding to 4 bits gives about 0.1. A larger one means
that gptqmodel packs weights in another way than is read here, or that the text is unsuitable."""


@dataclass(frozen=True)
class Settings:
    """How to quantise.

    Attributes:
        bits: Bits per weight: 4 or 8.
        group_size: Number of consecutive inputs that share a scale; -1 for all.
        device: Device that gptqmodel uses.
        text: See `read_text`.
        python: See `find_python`.
    """

    bits: int = 4
    group_size: int = 128
    device: Device = "cpu"
    text: Path | None = None
    python: Path | None = None


@dataclass(frozen=True)
class Quantised:
    """Result of quantising.

    Attributes:
        folder: The new checkpoint.
        model: Id of the model.
        bits, group_size, device: As in `Settings`.
        matrices: Number of quantised matrices.
        bytes_before, bytes_after: Size of the language model's tensors.
        perplexity_before, perplexity_after: On held-out text.
        cosine_mean, cosine_min: Cosine similarity of the last token's states after the final norm,
            before and after quantising.
        worst_weight_error, worst_weight: The largest relative error of a matrix, and its name.
        calibration_tokens, held_out_tokens: Tokens of text used.
        seconds, peak_bytes, device_peak_bytes: Time and peak memory of quantising, without
            measuring.
    """

    folder: Path
    model: str
    bits: int
    group_size: int
    device: str
    matrices: int
    bytes_before: int
    bytes_after: int
    perplexity_before: float
    perplexity_after: float
    cosine_mean: float
    cosine_min: float
    worst_weight_error: float
    worst_weight: str
    calibration_tokens: int
    held_out_tokens: int
    seconds: float
    peak_bytes: int
    device_peak_bytes: int


def quantize(
    request: Request, settings: Settings, out: Path | None, registry: Registry, progress: Progress
) -> Quantised:
    """Write a copy of `request`'s checkpoint with its language model quantised.

    The folder appears complete or not at all. It is a Hugging Face checkpoint of the same layout,
    for a vendor's builder and for `convert`.

    Args:
        out: A folder that does not exist yet. None names it after the model, in the current folder.

    Raises:
        AxcoreError: It failed; only a log is left.
    """
    _check_settings(settings)
    text = read_text(settings.text)
    job = open_job(request, registry, progress)
    with job.checkpoint:
        target = Path(out or f"{job.card.stem}-GPTQ-Int{settings.bits}").absolute()
        _check_target(target)
        language = language_of(job, registry)
        check_group_size(language, settings.group_size)
        _check_tokenizer(job)
        python = find_python(settings.python)
        run = _Run(job, language, settings, text, python, registry, progress)
        run.check_room(target.parent)
        with explained_full_disk(target.parent), _locked(target), appearing(target) as folder:
            folder.mkdir()
            done = run.carry_out(folder, target)
    return done


@dataclass(frozen=True)
class _Made:
    """What the worker reports of quantising; see `Quantised`."""

    calibration_tokens: int
    seconds: float
    peak_bytes: int
    device_peak_bytes: int
    quantization_config: dict[str, Any]


@dataclass(frozen=True)
class _Found:
    """What the worker reports of measuring; see `Quantised`."""

    perplexity_before: float
    perplexity_after: float
    cosine_mean: float
    cosine_min: float
    worst_weight_error: float
    worst_weight: str
    held_out_tokens: int


_CONFIG = "quantization_config"


@dataclass(frozen=True)
class _Run:
    job: Job
    language: Language
    settings: Settings
    text: Text
    python: Path
    registry: Registry
    progress: Progress

    def carry_out(self, folder: Path, target: Path) -> Quantised:
        """Write the new checkpoint into `folder`, which gets the name `target` afterwards."""
        source, scratch = self.job.checkpoint, folder / ".work"
        scratch.mkdir()
        write_checkpoint(source, self.language.checkpoint, scratch / "model", self.progress, ())
        self._copy_tokenizer(scratch)
        made, found = self._work(scratch, target.with_name(f"{target.name}.log"))
        self._judge(made, found)
        with Checkpoint.open(scratch / "quantised") as quantised:
            config = self._checked_config(made.quantization_config)
            merge(source, quantised, self.language, config, folder, self.progress)
        shutil.rmtree(scratch)
        done = Quantised(
            folder=target,
            model=self.job.card.id,
            bits=self.settings.bits,
            group_size=self.settings.group_size,
            device=self.settings.device,
            matrices=len(self.language.matrices),
            bytes_before=_language_bytes(source, self.job.card),
            bytes_after=self._checked_bytes(folder),
            **{name: value for name, value in asdict(made).items() if name != _CONFIG},
            **asdict(found),
        )
        write_json(folder / REPORT, {**asdict(done), "folder": target.name})
        return done

    def check_room(self, folder: Path) -> None:
        """Refuse a disk without room for the language model twice (gptqmodel's input and what it
        offloads) and for the result.
        """
        source = self.job.checkpoint
        whole = sum(info.nbytes for info in source.tensors.values())
        needed = 2 * _language_bytes(source, self.job.card) + whole
        while not folder.exists():
            folder = folder.parent
        if needed > (free := shutil.disk_usage(folder).free):
            raise BudgetError(
                f"quantising takes {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free\n"
                f"  in: {folder}",
                hint="make room, or choose a folder on another disk with -o",
            )

    def _work(self, scratch: Path, log: Path) -> tuple[_Made, _Found]:
        """Quantise and measure the language model; return all figures."""
        common = {
            "model": str(scratch / "model"),
            "text_folder": str(scratch / "tokenizer"),
            "out": str(scratch / "quantised"),
            "bits": self.settings.bits,
            "group_size": self.settings.group_size,
            "device": self.settings.device,
        }
        worker = Worker(self.python, scratch, log, self.progress)
        layers = int(self.job.text_config["num_hidden_layers"])
        self.progress.say(f"the output of gptqmodel goes to {log}")
        order = {**common, "task": "quantise", "calibration": self.text.calibration}
        made = worker.run(_Made, order, "quantise", layers, "layers")
        order = {**common, "task": "measure", "held_out": self.text.held_out}
        return made, worker.run(_Found, order, "measure", 2, "models")

    def _checked_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refuse weights in another form than was asked for.

        Raises:
            ToolchainError: The settings that came back say so.
        """
        said = {"desc_act": False, **config}
        asked = {"bits": self.settings.bits, "group_size": self.settings.group_size}
        for name, value in {**asked, "desc_act": False}.items():
            if said.get(name) != value:
                raise ToolchainError(
                    f"gptqmodel was asked for `{name}` {value} and says {shown(said.get(name))}",
                    hint="use gptqmodel 7.6.0",
                )
        return config

    def _copy_tokenizer(self, scratch: Path) -> None:
        """Copy the tokenizer's data, but not its code, to a folder of its own (see the worker)."""
        folder = scratch / "tokenizer"
        folder.mkdir()
        shutil.copyfile(scratch / "model/config.json", folder / "config.json")
        for name, path in find_assets(self.job.checkpoint.folder, TEXT_ASSETS).items():
            shutil.copyfile(path, folder / name)

    def _judge(self, made: _Made, found: _Found) -> None:
        if not 0 <= found.worst_weight_error <= MAX_WEIGHT_ERROR:
            raise ToolchainError(
                f"{shown(found.worst_weight)} came back with a relative error of"
                f" {found.worst_weight_error:.3f}; at most {MAX_WEIGHT_ERROR} can be right",
                hint="use gptqmodel 7.6.0, or other text",
            )
        widest = max(shape[1] for shape in self.language.matrices.values())
        if made.calibration_tokens < widest:
            self.progress.warn(
                f"{made.calibration_tokens} tokens are too few for the {widest} inputs of the"
                " widest layer: give more text with --text for a model to be used"
            )

    def _checked_bytes(self, merged: Path) -> int:
        """Open the result as `convert` does, and return the bytes of its language model."""
        card = self.job.card
        request = Request(card.id, checkpoint=str(merged))
        with open_job(request, self.registry, self.progress).checkpoint as written:
            return _language_bytes(written, card)


def _language_bytes(checkpoint: Checkpoint, card: ModelCard) -> int:
    infos = checkpoint.tensors.items()
    return sum(info.nbytes for key, info in infos if key.startswith(card.layout.text_prefixes))


def _check_target(target: Path) -> None:
    if target.exists():
        raise BundleError(
            f"{target} exists already", hint="choose another folder with -o, or remove it"
        )


def _check_tokenizer(job: Job) -> None:
    folder = job.checkpoint.folder
    known = ("tokenizer.json", "tokenizer_config.json", MARKER)  # fabricated ones may have none
    if not any((folder / name).is_file() for name in known):
        raise CheckpointError(
            f"the checkpoint has no tokenizer: neither `tokenizer.json` nor"
            f" `tokenizer_config.json`\n  in: {folder}",
            hint="fetch the tokenizer's files into that folder",
        )


def _check_settings(settings: Settings) -> None:
    offered = {"bits": BITS, "device": get_args(Device)}
    for name, values in offered.items():
        if (value := getattr(settings, name)) not in values:
            raise UsageError(
                f"--{name} {value} is not offered",
                hint=f"choose from {', '.join(map(str, values))}",
            )


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold `target` for this process.

    Raises:
        BundleError: Another process holds the lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BundleError(
            f"another axcore process is writing {target}",
            hint="wait for it to end, or choose another folder with -o",
        ) from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
