"""Lets torchvision be imported where its compiled half does not fit the installed torch.

torchvision registers `nms` and `qnms` from a compiled extension. Where pip serves torch for the CPU but torchvision
for CUDA, the extension cannot be loaded and `import torchvision` fails, although image processing needs neither.
scripts/environment.py then copies this file into the environment, with a .pth file that imports it at start.
It declares both operators right before torchvision is first imported, and costs nothing where it never is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareOperators(MetaPathFinder):
    """Finds nothing itself; it only notices the first import of torchvision."""

    library: Any = None
    """Keeps torch's registration alive."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declare the operators if `fullname` is torchvision; leave finding it to the others."""
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            import torch

            declare: Any = torch.library.Library
            DeclareOperators.library = declare("torchvision", "FRAGMENT")
            for name in OPERATORS:
                DeclareOperators.library.define(name + SIGNATURE)
        return None


sys.meta_path.insert(0, DeclareOperators())
