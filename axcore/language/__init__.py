"""The language model's side of a conversion: embedding files and build arguments."""

from .build_args import check_prompt_budget
from .embedding import find_embedding, write_embedding

__all__ = ["check_prompt_budget", "find_embedding", "write_embedding"]
