"""For plugin authors: a conformance test, answers and logits, and builds without a conversion.

The conformance test checks the rules that every family must keep, on a tiny checkpoint and without
a network. A family's own test is one call::

    # tests/test_foovl.py
    from axcore.testing import check_family


    def test_hooks_keep_their_promises(tmp_path):
        check_family("foovl", out=tmp_path)

`answered` and `logits` are what a bundle with a built language model gives; hold them against the
model's own class, with the same tokens.
"""

from .answers import answered, logits
from .kit import check_family
from .recorder import Recorder
from .toolchains import build_folder

__all__ = ["Recorder", "answered", "build_folder", "check_family", "logits"]
