"""`help` of every public operator: its arguments, their defaults, and a word on each of them."""

import inspect
import re

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase

OPERATORS = [name for name in dk.__all__ if hasattr(torch.ops.diffratio, name)]


def faults(function, schema) -> list[str]:
    """What keeps the help of a function from telling the arguments of its schema."""
    parameters = inspect.signature(function).parameters
    wanted = {argument.name: argument for argument in schema.arguments}
    if list(parameters) != list(wanted):
        return [f"takes {list(parameters)}, not {list(wanted)}"]
    found = []
    described = (inspect.getdoc(function) or "").partition("Args:")[2].partition("\nRaises:")[0]
    for name, argument in wanted.items():
        parameter = parameters[name]
        default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
        if parameter.default != default:
            found.append(f"{name} defaults to {parameter.default}, not {default}")
        if (parameter.kind is inspect.Parameter.KEYWORD_ONLY) != argument.kwarg_only:
            found.append(f"{name} is by keyword in one of the two only")
        if not re.search(rf"^ +(\w+, )*{name}(, \w+)*:", described, flags=re.MULTILINE):
            found.append(f"Args: has nothing on {name}")
    return found


def test_every_operator_is_looked_at():
    assert len(OPERATORS) == 15 and {"mod_block", "scatter_rescale_"} <= set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_help_tells_every_argument(name):
    function, schema = getattr(dk, name), getattr(torch.ops.diffratio, name).default._schema
    assert faults(function, schema) == []
    document = inspect.getdoc(function)
    assert "\nRaises:\n" in document
    assert ("\nReturns:\n" in document) == (len(schema.returns) > 0)


def test_a_signature_that_hides_or_changes_an_argument_is_a_fault():
    schema = torch.ops.diffratio.gate_residual.default._schema

    def opaque(hidden, *args, **kwargs):
        """Args: none."""

    def changed(
        hidden, branch, gate, index, tokens=64, *, groups=None, norm="none", norm_weight=None, norm_bias=None,
        norm_eps=1e-6, backend="auto",
    ):  # fmt: skip
        """Sum.

        Args:
            hidden, branch: rows.
            gate, index, groups: more.
            norm, norm_weight, norm_bias, norm_eps, backend: which.
        """

    assert faults(opaque, schema)[0].startswith("takes ['hidden', 'args', 'kwargs']")
    assert [fault.split()[0] for fault in faults(changed, schema)] == ["tokens", "Args:"]


def test_one_int_keeps_the_same_in_every_sample():
    block = ModBlockCase(seed=1, keep=(5, 5)).arguments()
    bins = TwoBinCase(seed=1, keep=(5, 5), keep_small=(3, 3)).arguments()
    assert torch.equal(dk.mod_block(**block | {"keep": 5}), dk.mod_block(**block))
    assert torch.equal(
        dk.two_bin_block(**bins | {"keep_small": 3, "keep_large": 5}), dk.two_bin_block(**bins)
    )
    for given in (5, [5]):
        index, _, _ = dk.route(block["x"], block["router_weight"], given, keep_small=3)
        assert len(index) == 5 * len(block["x"])


def test_torch_ops_takes_a_list_only_as_help_says():
    block = ModBlockCase(seed=1, keep=(5, 5)).arguments()
    with pytest.raises(RuntimeError, match="List\\[int\\]"):
        torch.ops.diffratio.mod_block(**block | {"keep": 5})
    assert "`torch.ops` takes a list only" in inspect.getdoc(dk.mod_block)
