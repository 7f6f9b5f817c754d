"""What single families refuse; `facts` tries all that is refused."""

import re

import pytest

from diffratio import DiffRatioConfig, apply_diffratio

from .cases.case import Holder
from .refusals import CHANGES, UNSUPPORTED, Tried


@pytest.mark.parametrize(("name", "change", "message"), CHANGES)
def test_refused_by_name(name, change, message):
    assert re.match(message, Tried(name).error(change))


@pytest.mark.parametrize("name", ["bria_double", "auraflow_single", "ltx2"])
def test_arguments_of_other_processors_are_refused_by_their_own_names(name):
    tried = Tried(name)
    assert tried.arguments()
    for argument, change in tried.arguments().items():
        assert re.match(rf"{argument}( \(more\))? is not supported by a routed block", tried.error(change))


@pytest.mark.parametrize("name", ["krea2_padded", "chroma_single_masked", "prx_masked"])
def test_masks_of_numbers_are_refused_where_attention_would_add_them(name):
    tried = Tried(name)
    (error,) = map(tried.error, tried.float_masks().values())
    if name == "prx_masked":  # which takes numbers for bools, as diffusers does
        assert error is None
    else:
        assert "attention_mask: a mask of torch.float32 is added" in error


@pytest.mark.parametrize("make", UNSUPPORTED)
def test_blocks_that_a_spec_does_not_describe_are_refused(make):
    with pytest.raises(ValueError, match="cannot be routed: block: "):
        apply_diffratio(Holder(make()), DiffRatioConfig())
