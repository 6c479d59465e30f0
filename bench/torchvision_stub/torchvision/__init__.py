"""Stands in for torchvision beside a CPU build of torch: its version and `ops.nms`, no more."""

from torchvision import ops

__all__ = ["ops"]
__version__ = "0.28.0"
