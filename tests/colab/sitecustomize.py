"""On PYTHONPATH of the rehearsal's kernels: in Colab google.colab is imported before any cell, and
there is a folder /content. CXR_TEST_CONTENT names one that stands for it; the two paths below that
the project knows are moved as soon as they are defined."""

import os
import sys
from pathlib import Path

import google.colab  # noqa: F401


class MoveContent:
    """Asked before any module is imported; finds none itself."""

    def find_spec(self, name, path=None, target=None):
        content = Path(os.environ["CXR_TEST_CONTENT"])
        if name == "cxr.config":
            import cxr.drive

            cxr.drive.DRIVE = content / "drive"
        elif config := sys.modules.get("cxr.config"):
            config.COLAB_OUTPUT = content / "cxr_output"


sys.meta_path.insert(0, MoveContent())
