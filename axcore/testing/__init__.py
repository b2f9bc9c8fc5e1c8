"""For plugin authors: the conformance kit, builds without a conversion, and a `Progress` that
remembers.

The kit checks the laws every family keeps, on a tiny checkpoint, without a network. A family's own
test is one call::

    # tests/test_foovl.py
    from axcore.testing import check_family


    def test_hooks_keep_their_promises(tmp_path):
        check_family("foovl", out=tmp_path)
"""

from .kit import check_family
from .recorder import Recorder
from .toolchains import build_folder

__all__ = ["Recorder", "build_folder", "check_family"]
