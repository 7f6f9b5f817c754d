"""Every family's blocks and models, a file each: BLOCKS and MODELS are functions that make one."""

from importlib import import_module
from pkgutil import iter_modules

_FILES = (file.name for file in iter_modules(__path__) if file.name != "case")
_FAMILIES = [import_module(f".{name}", __name__) for name in _FILES]
BLOCKS = {make.__name__: make for family in _FAMILIES for make in family.BLOCKS}
MODELS = {make.__name__.removesuffix("_model"): make for family in _FAMILIES for make in family.MODELS}
