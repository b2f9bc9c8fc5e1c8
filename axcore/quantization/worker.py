"""Quantise a text model, or measure the effect.

Run as a program, ``python worker.py ORDER``, by a Python that has gptqmodel; axcore itself need not
be installed there. ORDER is a JSON file; the report is written to ``ORDER["report"]``. Standard
output has a JSON value per line: a text to show, or the amount of work done. Each task is a process
of its own, so that the second starts with all memory and measures without gptqmodel.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Tell = Callable[["str | int"], None]
Sequences = Sequence[Sequence[int]]

SEQUENCE_TOKENS = 512
MIN_SEQUENCE_TOKENS = 16
MAX_SEQUENCES = 512
MAX_HELD_OUT = 64
PACKED = ("qweight", "qzeros", "scales", "g_idx")
DAMP = 0.01  # of the Hessian's mean diagonal, as in published conversions


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of a model on held-out text.

    Attributes:
        loss: Mean negative log-likelihood of a token, in nats.
        states: float32 ``[sequences, hidden]``: of each last token, after the final norm.
    """

    loss: float
    states: Tensor


def main(order_file: str) -> None:
    """Carry out an order."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    task = {"quantise": quantise, "measure": measure}[order["task"]]
    report = task(order, _exclusive_stdout())
    Path(order["report"]).write_text(json.dumps(report), encoding="utf-8")


# Text --------------------------------------------------------------------------------------------


def encoder(folder: Path) -> Callable[[str], list[int]]:
    """Return the tokenizer of `folder`; without one, bytes are the tokens."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: list(fast.encode(text).ids)
    if (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return lambda text: list(slow(text)["input_ids"])
    return lambda text: list(text.encode())


def write_blank_tokenizer(folder: Path) -> None:
    """Write a tokenizer of a single word.

    GPTQModel needs a tokenizer in the folder that it loads, and always executes code that a
    repository names for it. So it never gets the repository's own.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    word = "<pad>"
    blank = Tokenizer(models.WordLevel({word: 0}, unk_token=word))
    kind: Any = PreTrainedTokenizerFast
    kind(tokenizer_object=blank, pad_token=word, eos_token=word).save_pretrained(folder)


def sequences(
    texts: Iterable[str], encode: Callable[[str], list[int]], most: int
) -> list[list[int]]:
    """Join texts and cut them into at most `most` sequences; a short remainder is dropped."""
    stream = [token for text in texts for token in encode(text + "\n\n")]
    cut = [stream[i : i + SEQUENCE_TOKENS] for i in range(0, len(stream), SEQUENCE_TOKENS)]
    return [part for part in cut if len(part) >= MIN_SEQUENCE_TOKENS][:most]


# Quantising --------------------------------------------------------------------------------------


def quantise(order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Write the quantised model.

    Args:
        order: ``model``, ``text_folder``, ``out`` (folders), ``bits``, ``group_size``, ``device``,
            ``calibration`` (texts).

    Returns:
        JSON-like figures and the ``quantization_config``.
    """
    from gptqmodel import GPTQModel, QuantizeConfig

    started = time.perf_counter()
    calibration = sequences(
        order["calibration"], encoder(Path(order["text_folder"])), MAX_SEQUENCES
    )
    tokens = sum(map(len, calibration))
    tell(f"quantise with {len(calibration)} sequences, {tokens} tokens")
    settings = QuantizeConfig(
        bits=order["bits"],
        group_size=order["group_size"],
        sym=True,
        desc_act=False,  # the board's builder takes no reordered inputs
        act_group_aware=order["group_size"] > 0,
        damp_percent=DAMP,
        # The faster way to pack compiles a kernel; the bits are the same.
        pack_impl="cpu" if shutil.which("c++") else "original",
    )
    write_blank_tokenizer(Path(order["model"]))
    model = GPTQModel.load(order["model"], settings, device=order["device"])
    done: set[int] = set()

    def layer_complete(*, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized and layer_idx not in done:
            done.add(layer_idx)
            tell(1)

    model.layer_callback = layer_complete
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in calibration]
    model.quantize(rows, batch_size=1)
    model.save(order["out"])
    return {
        "calibration_tokens": tokens,
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_peak_bytes": _device_peak(order["device"]),
        "quantization_config": _quantization_config(Path(order["out"])),
    }


def _quantization_config(folder: Path) -> dict[str, Any]:
    """Return the written config, without what is specific to this run."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = config["quantization_config"]
    kept = ("quantizer", "damp_percent", "true_sequential", "act_group_aware")
    found["meta"] = {name: v for name, v in found.get("meta", {}).items() if name in kept}
    return found


# Measuring ---------------------------------------------------------------------------------------


def measure(order: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Run the float model, load the quantised weights into it, and run it again.

    Args:
        order: ``model``, ``text_folder``, ``out`` (folders), ``bits``, ``device``, ``held_out``
            (texts).

    Returns:
        JSON-like figures.
    """
    from transformers import AutoModelForCausalLM

    encode = encoder(Path(order["text_folder"]))
    held_out = sequences(order["held_out"], encode, MAX_HELD_OUT)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(order["model"], dtype="auto")
    model.to(order["device"]).eval()
    before = observe(model, held_out)
    tell(1)
    error = restore(model, Path(order["out"]), order["bits"])
    after = observe(model, held_out)
    tell(1)
    tokens = sum(map(len, held_out))
    return {**compare(before, after), **error, "held_out_tokens": tokens}


def observe(model: nn.Module, held_out: Sequences) -> Behaviour:
    """Run a causal language model of transformers over each sequence."""
    import torch

    losses, states = [], []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for row in held_out:
            tokens = torch.tensor([row], device=device)
            out = model(tokens, output_hidden_states=True, use_cache=False)
            logits = out.logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
            states.append(out.hidden_states[-1][0, -1].float().cpu())
    predicted = sum(len(row) - 1 for row in held_out)
    return Behaviour(float(sum(losses)) / predicted, torch.stack(states))


def compare(before: Behaviour, after: Behaviour) -> dict[str, float]:
    """Return perplexities, and cosine similarities between the states of both."""
    import torch

    cosines = torch.nn.functional.cosine_similarity(before.states, after.states)
    return {
        "perplexity_before": float(torch.tensor(before.loss).exp()),
        "perplexity_after": float(torch.tensor(after.loss).exp()),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }


def restore(model: nn.Module, folder: Path, bits: int) -> dict[str, Any]:
    """Load the quantised weights of `folder` into `model`, by the definition of the format.

    Returns:
        The largest relative error of a matrix, ``|restored - float| / |float|``, and its name.
    """
    from safetensors import safe_open

    errors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():
                if key.endswith(".qweight"):
                    name = key.removesuffix(".qweight")
                    packed = {part: file.get_tensor(f"{name}.{part}") for part in PACKED}
                    weight = dequantised(bits=bits, **packed)
                    errors[name] = _replace(model.get_submodule(name), weight)
    worst = max(errors, key=errors.__getitem__)
    return {"worst_weight_error": errors[worst], "worst_weight": worst}


def dequantised(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, bits: int
) -> Tensor:
    """Return float32 ``[outputs, inputs]``: ``(level - (zero + 1)) * scale``.

    Args:
        qweight: int32 ``[inputs * bits / 32, outputs]``, levels from the lowest bits up.
        qzeros: int32 ``[groups, outputs * bits / 32]``.
        scales: float16 ``[groups, outputs]``.
        g_idx: int32 ``[inputs]``, the group of each input.
    """
    import torch

    shifts, mask = torch.arange(0, 32, bits, dtype=torch.int32), 2**bits - 1
    levels = (qweight[:, None] >> shifts[None, :, None] & mask).flatten(0, 1)
    zeros = (qzeros[:, :, None] >> shifts & mask).flatten(1) + 1
    groups = g_idx.long()
    weight: Tensor = (levels - zeros[groups]) * scales[groups].float()
    return weight.T


def _replace(linear: nn.Module, weight: Tensor) -> float:
    import torch

    old = linear.get_parameter("weight")
    new = weight.to(old.device)
    with torch.no_grad():
        error = float((new - old.float()).norm() / old.float().norm().clamp_min(1e-12))
        old.copy_(new)
    return error


def _device_peak(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def _exclusive_stdout() -> Tell:
    """Reserve standard output for `Tell`; other output goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return lambda message: print(json.dumps(message), file=stream)


if __name__ == "__main__":
    main(sys.argv[1])
