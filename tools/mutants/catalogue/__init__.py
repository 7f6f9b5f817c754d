"""The planted bugs: small edits of one file each, and the tests that should see them."""

from .activations import ACTIVATIONS
from .baselines import BASELINES
from .choices import CHOICES
from .compiled import COMPILED
from .cuda import CUDA
from .cuda_two_bin import CUDA_TWO_BIN
from .families import FAMILIES
from .families_rows import FAMILIES_ROWS
from .gate import GATE
from .graphs import GRAPHS_OF_MODELS
from .host import HOST
from .inpainting import INPAINTING
from .inpainting_calls import INPAINTING_CALLS
from .metrics import METRICS
from .mutant import Mutant
from .native import NATIVE
from .ops import OPERATORS
from .triton_products import TRITON_PRODUCTS
from .triton_rows import TRITON_ROWS
from .triton_select import TRITON_SELECTION
from .triton_two_bin import TRITON_TWO_BIN
from .two_bin import TWO_BINS

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = TRITON_SELECTION + TRITON_ROWS + TRITON_PRODUCTS + TRITON_TWO_BIN
MUTANTS += CUDA + CUDA_TWO_BIN + OPERATORS + TWO_BINS + NATIVE + GATE + COMPILED + FAMILIES
MUTANTS += FAMILIES_ROWS + ACTIVATIONS + GRAPHS_OF_MODELS + CHOICES + HOST
MUTANTS += INPAINTING + INPAINTING_CALLS + BASELINES + METRICS
