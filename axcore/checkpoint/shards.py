"""Find the files of a folder or repository that hold the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..foreign import decode_json, read_bytes, reason
from ..limits import INDEX_BYTES, SHARDS
from ..plain import shown
from .headers import check_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")


def read_index(path: Path) -> dict[str, frozenset[str]]:
    """Read a safetensors index.

    Returns:
        Shard name to the disk keys it holds.

    Raises:
        CheckpointError: The index is not valid, or names a file outside its folder.
    """
    try:
        shards = _grouped(decode_json(read_bytes(path, INDEX_BYTES), unique=True))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{path.name}` is not an index with a `weight_map` of key to file: {reason(error)}\n"
            f"  file: {path}",
            hint="fetch the file again",
        ) from error
    _check_files(path, shards)
    return {shard: frozenset(keys) for shard, keys in shards.items()}


def sole_shard(names: Iterable[str], place: str) -> str:
    """Choose the safetensors file of a folder without an index.

    Args:
        names: All file names in the folder.
        place: The folder or repository, for messages.

    Raises:
        CheckpointError: There is none, there are several, or the weights are pickles.
    """
    names = sorted(names)
    shards = [name for name in names if name.endswith(SUFFIX)]
    if f"model{SUFFIX}" in shards:
        return f"model{SUFFIX}"
    if len(shards) == 1:
        return shards[0]
    if shards:
        raise CheckpointError(
            f"{len(shards)} safetensors files, but no `{INDEX}`\n"
            f"  found: {', '.join(shards[:5])}\n  in: {place}",
            hint=f"fetch `{INDEX}` of the same checkpoint",
        )
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        raise CheckpointError(
            f"the weights are pickles ({', '.join(pickles[:3])}), which are never opened: "
            f"loading one can run any code\n  in: {place}",
            hint="use a revision in safetensors, or convert the model by `save_pretrained` of "
            "transformers on a machine where the pickles are trusted",
        )
    raise CheckpointError(
        f"no weights: neither `{INDEX}` nor a safetensors file\n  in: {place}",
        hint="name the folder that holds `config.json` and the `*.safetensors` files",
    )


def _grouped(index: Any) -> dict[str, set[str]]:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError("it has no `weight_map` with an object in it")
    check_names(weight_map)
    shards: dict[str, set[str]] = {}
    for key, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ValueError(f"weight_map.{key}: {shown(shard)} is not the name of a file")
        shards.setdefault(shard, set()).add(key)
    if len(shards) > SHARDS:
        raise ValueError(f"it names {len(shards)} files; at most {SHARDS} are read")
    return shards


def _check_files(path: Path, shards: Mapping[str, object]) -> None:
    for shard in shards:
        plain = shard == Path(shard).name and "\\" not in shard and shard.isprintable()
        if not plain or not shard.endswith(SUFFIX):
            raise CheckpointError(
                f"`{path.name}` names {shown(shard)}, which is not a safetensors file beside it\n"
                f"  file: {path}",
                hint="do not use this checkpoint unless you trust its source; a valid index "
                "names only files of its own folder",
            )
