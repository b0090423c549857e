"""Lets timm be imported where torchvision is built for PyTorch with GPUs and PyTorch is not.

PyPI's torchvision then lacks its operators, and refuses to be imported. Two of them, declared and never run, will do.
"""

import sys

import torch

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision
except RuntimeError:
    for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

assert torchvision
