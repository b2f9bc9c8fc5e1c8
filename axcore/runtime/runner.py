"""Generate a streamed answer from messages: the same loop on a PC and on a board."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..choices import resolve
from ..errors import BudgetError, ContractError, ToolchainError, UsageError
from ..language.tokenizer import load_tokenizer
from ..language_model import Prompt
from .deployment import Deployment
from .language import Embeddings
from .masks import borders, chunk_ends, runs
from .sampling import Sampler, Sampling
from .text import TextStream
from .vision import VisionSide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ..progress import Progress
    from .contract import Backend, Plugins
    from .language import LanguageModel

Array = np.ndarray[Any, Any]


@dataclass
class Answer:
    """An answer and its statistics; updated while the answer is streamed.

    Attributes:
        prompt_tokens, reused_tokens: Length of the prompt, and how many of its tokens were still
            in the caches.
        token_ids: Tokens of the answer, without the stop token.
        text: The decoded answer.
        finish_reason: "stop" (a stop token), "length" (`max_new_tokens` reached), "context" (no
            room left) or "interrupted".
        load_s: Seconds to load the vision side; 0 if it was loaded before, or not needed.
        vision_s, prefill_s, decode_s: Seconds for the images, for the rest until the first token,
            and for the tokens after it.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "interrupted"
    load_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: int = 0

    @property
    def first_token_s(self) -> float:
        """Seconds until the first token, loading excluded."""
        return self.vision_s + self.prefill_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first token."""
        return self.steps / self.decode_s if self.decode_s else 0.0


class Runner:
    """A model that is ready to answer.

    The caches are kept between answers. Of a prompt that begins like the previous one, as the next
    turn of a conversation does, only the part that differs is processed.

    Attributes:
        deployment, language: The arguments. Rows of images may have been made `ahead`, in as many
            seconds of loading and of running.
        embeddings: The token embedding.
        tokenizer: The model's tokenizer.
    """

    def __init__(
        self,
        deployment: Deployment,
        registry: Plugins,
        vision: VisionSide,
        language: LanguageModel,
        ahead: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.deployment, self._registry = deployment, registry
        self._vision, self.language, self._ahead = vision, language, ahead
        self.embeddings = Embeddings(deployment)
        self.tokenizer = load_tokenizer(deployment.folder, ())
        self._read = _Read()

    @classmethod
    def open(
        cls,
        folder: Path,
        registry: Plugins,
        backend: str = "onnx",
        options: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        *,
        keep_vision: bool = False,
        ahead: Prompt | None = None,
    ) -> Runner:
        """Open a bundle, or a folder packaged for a board.

        Args:
            folder: Its folder.
            registry: The plugins.
            backend: What runs it.
            options: Options of the backend.
            progress: Where loading is reported.
            keep_vision: Whether the vision side stays in memory once it has made the rows of a
                prompt; else it is opened for each prompt with new images.
            ahead: A prompt whose images are run before the language model is loaded, so that
                unless `keep_vision` both are never in memory at once.

        Raises:
            AxcoreError: A subclass says what is missing or does not match.
        """
        deployment = Deployment.open(folder, registry, progress)
        found = available_backend(backend, registry)
        chosen = resolve(f"backend `{backend}`", found.options, options or {})
        # Cheap checks first: loading the weights can take minutes.
        Embeddings(deployment), load_tokenizer(deployment.folder, ())
        model = found.vision(deployment, chosen)
        vision = VisionSide(model, deployment.graphs, keep=keep_vision)
        if ahead is not None:
            # A backend may have it: what is missing or damaged then shows before any work.
            getattr(found, "check", _unchecked)(deployment)
            vision.rows(ahead)
        return cls(deployment, registry, vision, found.language(deployment, chosen), vision.spent())

    def prepare(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        """Return the prompt for `messages`; see `prepare_prompt`."""
        return prepare_prompt(self.deployment, self._registry, messages)

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        answer: Answer | None = None,
    ) -> Iterator[str]:
        """Yield the text of the answer in pieces.

        Closing the iterator stops after the current token; the caches stay valid.

        Args:
            sampling: How tokens are chosen; None always takes the likeliest.
            max_new_tokens: The limit, 1 or more; None continues while the context has room.
            answer: Updated as the answer grows.

        Raises:
            UsageError: `max_new_tokens` is out of range.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UsageError(
                f"--max-new-tokens {max_new_tokens} is out of range",
                hint="choose 1 or more, or leave it out",
            )
        answer = answer if answer is not None else Answer()
        stream = TextStream(self.tokenizer)
        for token in self._tokens(prompt, sampling or Sampling(), max_new_tokens, answer):
            piece = stream.push(token)
            answer.text += piece
            if piece:
                yield piece
        rest = stream.finish()
        answer.text += rest
        if rest:
            yield rest

    def _tokens(
        self, prompt: Prompt, sampling: Sampling, max_new_tokens: int | None, answer: Answer
    ) -> Iterator[int]:
        """Yield the tokens of the answer and update `answer`."""
        sampler = Sampler(sampling)
        stop = self.deployment.stop_ids | set(prompt.stop_ids)
        room = self.language.context - len(prompt.input_ids)
        limit = room if max_new_tokens is None else min(room, max_new_tokens)
        logits = self._prefill(prompt, answer)
        position = int(prompt.position_ids.max()) + 1
        seen = prompt.input_ids.tolist()
        while len(answer.token_ids) < limit:
            token = sampler(logits, seen)
            if token in stop:
                answer.finish_reason = "stop"
                return
            answer.token_ids.append(token)
            seen.append(token)
            yield token
            if len(answer.token_ids) == limit:
                break
            logits = self._decode(token, position, answer)
            position += 1
        answer.finish_reason = "length" if limit == max_new_tokens else "context"

    def _prefill(self, prompt: Prompt, answer: Answer) -> Array:
        ahead, self._ahead = self._ahead, (0.0, 0.0)
        self._vision.spent()
        started = time.perf_counter()
        rows = self.rows(prompt)
        load_s, vision_s = self._vision.spent()
        answer.load_s, answer.vision_s = load_s + ahead[0], vision_s + ahead[1]
        positions, blocks = prompt.position_ids, runs(prompt.blocks, len(rows))
        # A model that knows no blocks need not take them.
        given = [blocks] if blocks.any() else []
        known = self._read.common(rows, positions, blocks)
        # The last token is always processed, as the answer starts from its logits.
        kept = self.language.resume(min(known, len(rows) - 1), len(rows), *given)
        self._read.keep(kept)
        answer.prompt_tokens, answer.reused_tokens = len(rows), kept
        rest = rows[kept:], positions[:, kept:]
        given = [part[kept:] for part in given]
        logits: Array = self.language.prefill(rest[0][None], rest[1], *given)[0]
        self._read.add(*rest, blocks[kept:])
        answer.prefill_s = time.perf_counter() - started - load_s - vision_s
        return logits

    def _decode(self, token: int, position: int, answer: Answer) -> Array:
        started = time.perf_counter()
        row = self.embeddings.rows(np.array([token]))
        logits: Array = self.language.decode(row, position)[0]
        places = np.full((len(self._read.positions), 1), position)
        self._read.add(row, places, np.zeros(1, np.int64))
        answer.decode_s += time.perf_counter() - started
        answer.steps += 1
        return logits

    def forget(self) -> None:
        """Clear the caches and the rows of images, so that the next answer starts from nothing."""
        self._read.keep(0)
        self._vision.forget()

    def rows(self, prompt: Prompt) -> Array:
        """Return the input of the language model, float32 ``[n, columns]`` (see `Columns`).

        These are token embeddings, with placeholders replaced by the rows of images, what is added
        behind layers at the places of images, and the rows of further tables.
        """
        rows, columns = self.embeddings.rows(prompt.input_ids), self.embeddings.columns
        for name, made in self._vision.rows(prompt).items():
            places = prompt.places[name]
            rows[places, : columns.width] = made.hidden
            for layer, added in made.added.items():
                rows[places, columns.added[layer]] = added
        return rows


def _unchecked(deployment: Deployment) -> None:
    """Find nothing wrong: the backend looks at its files when it loads them."""


def prepare_prompt(
    deployment: Deployment, registry: Plugins, messages: Sequence[Mapping[str, Any]]
) -> Prompt:
    """Return the prompt for `messages`, checked against the length limits; no model is loaded.

    Args:
        messages: In the form that the family's hook expects.

    Raises:
        BudgetError: The prompt is too long, or no chunks can hold its blocks; the message has the
            numbers.
        AxcoreError: The family does not support something in the messages.
    """
    job, llm = deployment.job, deployment.llm
    prompt = registry.call(job.family, "prepare_prompt", job=job, messages=messages)
    with registry.blame(job.family, "prepare_prompt"):
        if not isinstance(prompt, Prompt):
            raise ContractError(f"returned {prompt!r}, not a Prompt")
    count = len(prompt.input_ids)
    longest = max(llm.last_kv_cache_len, default=0)
    limit = llm.prefill_len + longest
    if count > limit:
        images = sum(map(len, prompt.places.values()))
        raise BudgetError(
            f"the prompt has {count} tokens ({images} for images); this build allows {limit}",
            hint="shorten it, give fewer images, or convert with a longer --last-kv-cache-len",
        )
    chunk_ends(0, runs(prompt.blocks, count), llm.prefill_len, longest)  # whatever is cached
    return prompt


def available_backend(name: str, registry: Plugins) -> Backend:
    """Return the backend `name`, if it is available.

    Raises:
        UsageError: No such backend is installed.
        ToolchainError: It is not available on this machine; the hint says how to change that.
    """
    known = registry.backends
    if name not in known:
        raise UsageError(f"no backend `{name}`", hint=f"installed: {', '.join(known)}")
    found = known[name].availability()
    if not found.available:
        raise ToolchainError(
            f"backend `{name}` is not available: {found.detail}", hint=found.remedy
        )
    return known[name]


class _Read:
    """The content of the caches: rows, their positions and their blocks."""

    def __init__(self) -> None:
        self.rows: list[Array] = []
        self.positions: Array = np.empty((1, 0), np.int64)
        self.blocks: Array = np.empty(0, np.int64)

    def common(self, rows: Array, positions: Array, blocks: Array) -> int:
        """Return how many leading rows are in the caches already, seeing the same tokens."""
        if len(positions) != len(self.positions):
            return 0
        count = min(len(rows), len(self.rows))
        same = (positions[:, :count] == self.positions[:, :count]).all(0)
        same &= blocks[:count] == self.blocks[:count]
        alike = (same[i] and np.array_equal(rows[i], self.rows[i]) for i in range(count))
        known = next((index for index, equal in enumerate(alike) if not equal), count)
        # The first tokens of a block have seen its last ones, which may differ.
        while known and not (borders(self.blocks)[known] and borders(blocks)[known]):
            known -= 1
        return known

    def keep(self, count: int) -> None:
        """Drop all but the first `count` rows."""
        del self.rows[count:]
        self.positions, self.blocks = self.positions[:, :count], self.blocks[:count]

    def add(self, rows: Array, positions: Array, blocks: Array) -> None:
        """Record rows that were appended to the caches."""
        before = self.positions if self.rows else positions[:, :0]
        self.positions = np.concatenate([before, positions], 1)
        self.blocks = np.concatenate([self.blocks, blocks])
        self.rows.extend(rows)
