"""Run CLIP: transformers' model, with weights of open_clip or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.assets import TEXT_ASSETS, find_assets
from ..errors import CheckpointError, UsageError
from ..language.tokenizer_files import WHOLE, read_tokenizer
from .clip_files import BPE, ClipFiles, read_clip, read_merges, weights_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor, nn

    Array = np.ndarray[Any, Any]

VOCABULARIES = ("tokenizer.json", "vocab.json", BPE)
ANOTHER = "use weights, `config.json` and tokenizer of one and the same CLIP"


class Clip:
    """A CLIP that turns images and texts into features of one space.

    Features are float32 ``[n, width of the space]``, each of length 1. A CheckpointError says that
    they are not finite.

    Attributes:
        side_px: Width and height of its images.
        context: Tokens of its longest text, the first and last included.
    """

    def __init__(self, files: ClipFiles, model: Any, tokenizer: Any) -> None:
        self._files = files
        self._model = model
        self._tokenizer = tokenizer
        self.side_px = int(model.config.vision_config.image_size)
        self.context = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, weights: Path, tokenizer: Path | None = None) -> Clip:
        """Read weights and vocabulary, without a copy of the weights.

        Args:
            weights: See `read_clip`.
            tokenizer: A folder with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, or
                open_clip's `BPE`; or that file. By default where the weights are.

        Raises:
            UsageError: transformers or the vocabulary is missing.
            CheckpointError: The weights are missing, damaged or those of another model, or the
                tokenizer is that of another.
        """
        beside = weights_file(weights).parent
        vocabulary = _tokenizer(tokenizer or beside)  # before gigabytes are read
        files = read_clip(weights)
        clip = cls(files, _model(files), vocabulary)
        clip._check_tokenizer()
        return clip

    def pixels(self, image: Image) -> Array:
        """Preprocess an RGB image.

        The shorter edge is resized to `side_px` (bicubic, the longer one rounded down), then the
        centre is cropped, at an offset of half a pixel rounded to even. This is open_clip's
        preprocessing, for weights of either layout; transformers' processor rounds the offset
        down, which for a quarter of all sizes is one pixel off.

        Returns:
            float32 ``[3, side_px, side_px]``, normalised.

        Source: open_clip, ``image_transform``; torchvision, ``resize`` and ``center_crop``.
        """
        from PIL.Image import Resampling

        side, (width, height) = self.side_px, image.size
        shorter = min(width, height)
        size = (int(side * width / shorter), int(side * height / shorter))
        left, top = (round((edge - side) / 2) for edge in size)
        resized = image.resize(size, Resampling.BICUBIC)
        array = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255
        mean, std = (np.array(x, np.float32) for x in (self._files.mean, self._files.std))
        normalised: Array = ((array - mean) / std).transpose(2, 0, 1)
        return normalised

    def image_features(self, pixels: Array) -> Array:
        """Return one feature per image.

        Args:
            pixels: float32 ``[n, 3, side_px, side_px]`` as from `pixels`.
        """
        import torch

        with torch.inference_mode():
            features = self._model.get_image_features(torch.from_numpy(pixels)).pooler_output
        return self._normalised(features)

    def text_features(self, texts: Sequence[str]) -> Array:
        """Return one feature per text; texts are truncated to `context` tokens, end token kept."""
        import torch

        tokens = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.context,
            padding=True,
            return_tensors="pt",
        )
        # Padding follows the end token and attention is causal, so no mask is needed.
        with torch.inference_mode():
            features = self._model.get_text_features(tokens["input_ids"]).pooler_output
        return self._normalised(features)

    def _normalised(self, features: Tensor) -> Array:
        unit: Tensor = features / features.norm(dim=-1, keepdim=True)
        if not bool(unit.isfinite().all()):
            raise CheckpointError(
                f"the features of this CLIP are not finite\n  weights: {self._files.path}",
                hint="the weights are damaged: fetch them again",
            )
        array: Array = unit.numpy()
        return array

    def _check_tokenizer(self) -> None:
        text = self._model.config.text_config
        # In published configurations 2 means "the highest id", whatever that is.
        end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
        if len(self._tokenizer) > text.vocab_size or self._tokenizer.eos_token_id != end:
            raise CheckpointError(
                f"the tokenizer is of another model: {len(self._tokenizer)} tokens, the end token "
                f"is {self._tokenizer.eos_token_id}\n"
                f"  the weights want: {text.vocab_size} tokens, end token {end}",
                hint=ANOTHER,
            )


def _library() -> Any:
    try:
        import transformers
        from transformers import CLIPModel  # noqa: F401  (loaded on this access only)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a broken torchvision beside it
        raise UsageError(
            f"the CLIP judge needs transformers, which cannot be imported\n  {error}",
            hint="pip install 'axcore[evaluate]'; if torchvision is broken, uninstall it",
        ) from error
    return transformers


def _model(files: ClipFiles) -> nn.Module:
    """Build the model on the tensors themselves, without copying them."""
    import torch

    model = _skeleton(files)
    try:
        model.load_state_dict(dict(files.tensors), assign=True)
    except RuntimeError as error:
        _, first, *_ = str(error).splitlines()  # after the headline, a line per kind of misfit
        raise CheckpointError(
            f"these are weights of another CLIP\n  read from: {files.path}\n  "
            + first.strip()[:200],
            hint=ANOTHER,
        ) from error
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:  # the position ids, which no file holds
            owner, _, attribute = name.rpartition(".")
            ids = torch.arange(buffer.shape[-1]).expand(tuple(buffer.shape))
            setattr(model.get_submodule(owner), attribute, ids)
    return model.eval()


def _skeleton(files: ClipFiles) -> nn.Module:
    import torch

    library = _library()
    kind = files.config.get("model_type", "clip")
    try:
        if kind != "clip":
            raise ValueError(f"model_type is `{kind}`, not `clip`")
        with torch.device("meta"):
            model: nn.Module = library.CLIPModel(library.CLIPConfig.from_dict(files.config))
    except Exception as error:  # transformers has its own kinds for bad configurations
        raise CheckpointError(
            f"the configuration is not that of a CLIP\n  read from: {files.path}\n  {error}",
            hint=ANOTHER,
        ) from error
    return model


def _tokenizer(place: Path) -> Any:
    """Open a CLIP tokenizer, from a file or from the first of `VOCABULARIES` in a folder."""
    library = _library()
    files = [place / name for name in VOCABULARIES] if place.is_dir() else [place]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UsageError(
            f"no vocabulary of a CLIP\n  looked for: {', '.join(map(str, files))}",
            hint="name one with --tokenizer: a Hugging Face CLIP folder, or the "
            f"`{BPE}` that the package open-clip-torch contains",
        )
    if file.suffix == ".gz":
        vocabulary, merges = read_merges(file)
        return library.CLIPTokenizer(vocab=vocabulary, merges=merges)
    try:
        _check_tokenizer_files(file.parent)
        return library.CLIPTokenizer.from_pretrained(file.parent, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise UsageError(
            f"the tokenizer in {file.parent} cannot be read\n  {error}",
            hint="fetch its files again",
        ) from error


def _check_tokenizer_files(folder: Path) -> None:
    """Refuse what transformers would read whatever it is.

    Raises:
        CheckpointError: A file is no regular one, too large, or hostile.
    """
    if WHOLE in find_assets(folder, TEXT_ASSETS):
        read_tokenizer(folder / WHOLE)
