"""For plugin authors: a conformance test for families, and a `Progress` that records.

The conformance test checks the rules that every family must keep, on a tiny checkpoint and without
a network. A family's own test is one call::

    # tests/test_foovl.py
    from axcore.testing import check_family


    def test_hooks_keep_their_promises(tmp_path):
        check_family("foovl", out=tmp_path)
"""

from .kit import check_family
from .recorder import Recorder

__all__ = ["Recorder", "check_family"]
