"""Thin nn.Modules over the operators: parameters and state_dict, nothing numerical."""

from .mod_block import ModBlock
from .ratio_table import RatioTable
from .router import Router

__all__ = ["ModBlock", "RatioTable", "Router"]
