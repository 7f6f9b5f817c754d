"""Thin nn.Modules over the operators: parameters and state_dict, nothing numerical."""

from .mod_block import ModBlock
from .router import Router

__all__ = ["ModBlock", "Router"]
