"""The language model's part of a conversion: embedding files, build arguments, decoder layers."""

from .build_args import check_prompt_budget
from .embedding import find_embedding, write_embedding

__all__ = ["check_prompt_budget", "find_embedding", "write_embedding"]
