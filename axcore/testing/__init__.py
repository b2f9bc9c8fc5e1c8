"""For plugin authors: a conformance test, answers and logits, and builds without a conversion.

The conformance test checks the rules that every family must keep, on a tiny checkpoint and without
a network. A family's own test is one call::

    # tests/test_foovl.py
    from axcore.testing import check_family


    def test_hooks_keep_their_promises(tmp_path):
        check_family("foovl", out=tmp_path)

`run_stages` computes the vision side; `answered` and `logits` are what a bundle with a built
language model gives. Hold them against the model's own class, with the same inputs.
"""

from .answers import answered, logits, user
from .kit import check_family
from .oracle import transformers_answers
from .prompts import check_prompt
from .recorder import Recorder
from .stages import run_stages
from .toolchains import build_folder

__all__ = [
    "Recorder",
    "answered",
    "build_folder",
    "check_family",
    "check_prompt",
    "logits",
    "run_stages",
    "transformers_answers",
    "user",
]
