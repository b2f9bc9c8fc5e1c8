"""Fill a folder for Axera's ``axllm run`` and ``axllm serve``."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import BundleError, CheckpointError, ContractError, UnsupportedModel
from ..language.tokenizer import load_tokenizer
from ..language.tokenizer_files import SETTINGS, read_settings
from ..request import Options
from .copying import copy_files
from .mnn_tokenizer import mnn_text
from .source import COMPILED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

    from ..language_model import LlmBuildArgs
    from ..model_card import Profile
    from ..progress import Progress
    from .sbom import Library
    from .source import Source

NAME = "axllm"  # the key of `ModelCard.runtimes`
CONFIG, SAMPLING, TOKENIZER = "config.json", "post_config.json", "tokenizer.txt"
NEEDED = ("tokenizer_type", "vlm_type")
CHUNK = 128  # of every package published for axllm
LENGTHS = ("lengths", "prefill_len", "kv_cache_len", "last_kv_cache_len")

GREEDY: Mapping[str, Any] = {
    "enable_temperature": False,
    "temperature": 1.0,
    "enable_repetition_penalty": False,
    "repetition_penalty": 1.0,
    "penalty_window": 20,
    "enable_top_p_sampling": False,
    "top_p": 1.0,
    "enable_top_k_sampling": False,
    "top_k": 1,
}
"""Sampling is off, as in published packages; ``axllm`` requires every value."""


def fill(folder: Path, source: Source, progress: Progress) -> list[Library]:
    """Write models, embedding, tokenizer and settings into `folder`; no library is among them.

    Raises:
        UnsupportedModel: ``axllm`` cannot run this model.
        BundleError: The bundle is not built, incomplete or changed.
        CheckpointError: The tokenizer is missing or damaged, or no token would end an answer.
    """
    _check_model(source)
    _check_lengths(source)
    if source.suffix != COMPILED:
        raise BundleError(
            f"{source.folder} holds no {COMPILED} files",
            hint=f"axllm runs on an NPU: `axcore build {source.folder} --toolchain pulsar2`",
        )
    files = [*source.models.files, source.deployment.embedding_file]
    copy_files({path.name: path for path in files}, folder, progress)
    (folder / TOKENIZER).write_text(_tokenizer_text(source), encoding="utf-8")
    for name, content in ((CONFIG, _config(source)), (SAMPLING, GREEDY)):
        text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    progress.say(f"{len(source.models.layers)} layers; on the board: axllm run FOLDER")
    return []


def _check_model(source: Source) -> None:
    """Refuse models that ``axllm`` would load but run incorrectly."""
    card = source.card
    given = card.runtimes.get(NAME, {})
    graphs, scale = len(source.deployment.graphs), source.deployment.embedding.scale
    state = source.deployment.llm.hidden_state_type
    tables = ", ".join(table.name for table in source.deployment.tables)
    for wrong, why in (
        (not given, "has no type for it"),
        (graphs != 1, f"takes one vision file, not {graphs}"),
        (scale != 1, f"does not multiply embeddings by {scale:g}"),
        (bool(tables), f"reads no table beside the embedding, as {tables} is"),
        (state != "bf16", f"feeds bf16 to the layers, which take {state}"),
    ):
        if wrong:
            raise UnsupportedModel(
                f"axllm cannot run `{card.id}` as converted: it {why}",
                hint="package with --runtime python",
            )
    if missing := [name for name in NEEDED if name not in given]:
        raise ContractError(
            f"plugin {source.plugin}: the model card of `{card.id}` lacks {', '.join(missing)} in"
            f" `runtimes[{NAME!r}]`"
        )


def _check_lengths(source: Source) -> None:
    """Refuse lengths that crash ``axllm``.

    Source: its code rounds down to whole chunks with a bit mask, and allocates the cache of prompts
    from the groups that have a history.
    """
    llm = source.deployment.llm
    if why := _unfit(llm):
        raise UnsupportedModel(
            f"axllm cannot run `{source.card.id}` with these lengths: it {why}",
            hint="build again after this command, with --images as before:"
            f" `{_convert_command(source)}`",
        )


def _unfit(lengths: LlmBuildArgs | Profile) -> str:
    chunk = lengths.prefill_len
    longest = max(lengths.last_kv_cache_len, default=0) + chunk
    if chunk & (chunk - 1):
        return (
            f"takes chunks of a power of two, not of {chunk} tokens, with which it would reckon"
            f" {longest & ~(chunk - 1)} of the {longest} that a prompt may have"
        )
    if not lengths.last_kv_cache_len:
        return "needs a history, without which it allocates no cache for prompts"
    return ""


def _convert_command(source: Source) -> str:
    """Return the conversion of the bundle anew, with lengths that ``axllm`` runs."""
    bundle, card = source.deployment.bundle, source.card
    words = ["axcore", "convert", card.id, "--checkpoint", bundle.manifest.checkpoint.folder]
    words += ["-o", str(source.folder)]
    for item in fields(Options):
        value = getattr(bundle.options, item.name)
        if item.metadata and item.name not in LENGTHS and value != item.default:
            flag = item.metadata["flag"] or f"--{item.name.replace('_', '-')}"
            words += [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
    for name, value in bundle.options.choices.items():
        words += [f"--{name}", value]
    return shlex.join([*words, *_lengths(source)])


def _lengths(source: Source) -> list[str]:
    """Return the options for lengths; none where the card's own hold prompts as long."""
    job, llm = source.deployment.job, source.deployment.llm
    needed = max(llm.last_kv_cache_len, default=0) + llm.prefill_len
    own = source.card.profiles[job.task]
    if not _unfit(own) and own.max_prompt >= needed:
        return []
    chunk = min(CHUNK, 1 << (llm.prefill_len.bit_length() - 1))
    chunks = max(2, -(-needed // chunk))
    words = ["--prefill-len", str(chunk)]
    words += ["--kv-cache-len", str(max(llm.kv_cache_len, chunks * chunk))]
    for count in range(1, chunks):
        words += ["--last-kv-cache-len", str(count * chunk)]
    return words


def _config(source: Source) -> dict[str, Any]:
    models, profile = source.models, source.deployment.job.profile
    vocabulary, hidden = source.deployment.embedding.shape
    return {
        "model_name": source.card.id,
        "url_tokenizer_model": TOKENIZER,
        "post_config_path": SAMPLING,
        "template_filename_axmodel": models.layers[0].name.replace("_l0_", "_l%d_"),
        "axmodel_num": len(models.layers),
        "filename_post_axmodel": models.post.name,
        "filename_tokens_embed": source.deployment.embedding_file.name,
        "tokens_embed_num": vocabulary,
        "tokens_embed_size": hidden,
        "use_mmap_load_embed": True,
        "filename_image_encoder_axmodel": models.vision[0].name,
        "vision_width": profile.width,
        "vision_height": profile.height,
        "devices": [0],
        **source.card.runtimes[NAME],
    }


def _tokenizer_text(source: Source) -> str:
    tokenizer = load_tokenizer(source.folder, ())
    rows = source.deployment.embedding.shape[0]
    ends = source.deployment.stop_ids | _end_token(source.folder, tokenizer)
    stops = sorted(end for end in ends if end < rows)  # no answer has one of the others
    if not stops:
        raise CheckpointError(
            f"no file in {source.folder} says which token ends an answer",
            hint="put the published generation_config.json into the checkpoint and convert again",
        )
    if (most := max(tokenizer.get_vocab().values())) >= rows:
        raise CheckpointError(
            f"the tokenizer has the id {most}; the embedding has {rows} rows\n"
            f"  in: {source.folder}",
            hint="use tokenizer and weights of one checkpoint, and convert again",
        )
    return mnn_text(tokenizer, stops)


def _end_token(folder: Path, tokenizer: Tokenizer) -> set[int]:
    """Return the id of the end token in ``tokenizer_config.json``, if it names one."""
    path = folder / SETTINGS
    named = read_settings(path).get("eos_token") if path.exists() else None
    text = named.get("content") if isinstance(named, dict) else named
    try:
        found = tokenizer.token_to_id(text) if isinstance(text, str) else None
    except UnicodeEncodeError:  # JSON can hold half a character; no token is that
        found = None
    return set() if found is None else {found}
