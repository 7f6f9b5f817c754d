"""DiffRatioConfig: every bad value is named, and a config survives JSON."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from diffratio import DiffRatioConfig

BAD = [
    ({"compression": -0.1}, "compression=-0.1"),
    ({"compression": 1.1}, "compression=1.1"),
    ({"compression": 0.25}, "compression=0.25"),
    ({"compression": 1e-3}, "compression=0.001"),
    ({"compression": 30}, "compression=30"),
    ({"compression": math.nan}, "compression=nan"),
    ({"compression": math.inf}, "compression=inf"),
    ({"compression": -math.inf}, "compression=-inf"),
    ({"compression": "0.3"}, "compression='0.3'"),
    ({"compression": None}, "compression=None"),
    ({"compression": True}, "compression=True"),
    ({"compression": [0.3]}, r"compression=\[0.3\]"),
    ({"compression": 0.3 + 0j}, r"compression=\(0.3\+0j\)"),
    ({"compression": torch.tensor(0.3)}, "compression=tensor"),
    ({"num_regions": 0}, "num_regions=0"),
    ({"num_regions": -1}, "num_regions=-1"),
    ({"num_regions": 1001}, "num_regions=1001"),
    ({"num_regions": 2.0}, "num_regions=2.0"),
    ({"num_regions": "2"}, "num_regions='2'"),
    ({"num_regions": None}, "num_regions=None"),
    ({"num_regions": True}, "num_regions=True"),
    ({"rescale": "MLP"}, "rescale='MLP'"),
    ({"rescale": ""}, "rescale=''"),
    ({"rescale": None}, "rescale=None"),
    ({"rescale": ["mlp"]}, r"rescale=\['mlp'\]"),
    ({"router_start": "zero"}, "router_start='zero'"),
    ({"router_start": None}, "router_start=None"),
    ({"router_bias": 1}, "router_bias=1"),
    ({"router_bias": None}, "router_bias=None"),
    ({"router_bias": "yes"}, "router_bias='yes'"),
    ({"overrides": None}, "overrides=None"),
    ({"overrides": [0.1]}, r"overrides=\[0.1\]"),
    ({"overrides": {"0": 0.1}}, "overrides: layer '0'"),
    ({"overrides": {0.0: 0.1}}, "overrides: layer 0.0"),
    ({"overrides": {True: 0.1}}, "overrides: layer True"),
    ({"overrides": {None: 0.1}}, "overrides: layer None"),
    ({"overrides": {0: 0.15}}, r"overrides\[0\]=0.15"),
    ({"overrides": {-2: None}}, r"overrides\[-2\]=None"),
    ({"overrides": {0: math.nan}}, r"overrides\[0\]=nan"),
    ({"overrides": {0: {}}}, r"overrides\[0\]=\{\}"),
    ({"overrides": {0: []}}, r"overrides\[0\]=\[\] must hold num_regions=1"),
    ({"overrides": {0: [0.1]}, "num_regions": 2}, r"overrides\[0\]=\[0.1\] must hold num_regions=2"),
    ({"overrides": {0: [0.1] * 3}, "num_regions": 2}, r"overrides\[0\]=.* must hold num_regions=2"),
    ({"overrides": {0: [0.1, "x"]}, "num_regions": 2}, r"overrides\[0\]='x'"),
    ({"overrides": {0: [0.1, 2]}, "num_regions": 2}, r"overrides\[0\]=2"),
]
GOOD = [
    {},
    {"compression": 0, "rescale": "none"},
    {"compression": 1, "rescale": "output", "router_start": "faithful"},
    {"compression": 0.1 + 0.2, "rescale": "residual", "router_bias": True},
    {"num_regions": 3, "overrides": {0: [0.1, 0.2, 1.0], -1: 0.0, 4: (0, 1, 0.5)}},
    {"num_regions": 1000},
]


@pytest.mark.parametrize(("settings", "named"), BAD)
def test_every_bad_value_is_named(settings, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        DiffRatioConfig(**settings)


def test_numbers_of_numpy_become_plain_ones():
    given = DiffRatioConfig(
        np.float32(0.3), {np.int64(1): np.float32(0.7), 2: [np.float64(0.1), Fraction(1, 5)]}, np.int64(2)
    )
    assert json.loads(json.dumps(given.to_dict())) == given.to_dict()
    assert given == DiffRatioConfig(0.3, {1: 0.7, 2: [0.1, 0.2]}, 2)


@pytest.mark.parametrize("settings", GOOD)
def test_a_config_survives_json(settings):
    config = DiffRatioConfig(**settings)
    again = DiffRatioConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.kept_tenths(6) == config.kept_tenths(6)
    assert again.to_dict() == config.to_dict()


def test_every_compression_in_tenths_keeps_the_rest_of_ten():
    for n in range(11):
        assert DiffRatioConfig(n / 10).kept_tenths(1) == [[10 - n]]


def test_the_table_of_kept_tenths_is_layers_by_regions():
    config = DiffRatioConfig(0.3, {0: [0.1, 0.2], -1: 1.0}, num_regions=2)
    assert config.kept_tenths(3) == [[9, 8], [7, 7], [0, 0]]


@pytest.mark.parametrize("layer", [3, 28, -4])
def test_a_layer_that_the_model_lacks_is_named(layer):
    with pytest.raises(ValueError, match=rf"overrides: layer {layer} must be in -3\.\.2"):
        DiffRatioConfig(overrides={layer: 0.1}).kept_tenths(3)


def test_two_overrides_of_one_layer_are_an_error_and_not_the_later_one():
    with pytest.raises(ValueError, match="overrides: layers 0 and -3 are the same"):
        DiffRatioConfig(overrides={0: 0.1, -3: 0.2}).kept_tenths(3)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "config must be a dict"),
        ([], "config must be a dict"),
        ("{}", "config must be a dict"),
        ({"compresion": 0.3}, r"unknown entries \['compresion'\]"),
        ({1: 2, "x": 3}, r"unknown entries \['1', 'x'\]"),
        ({"rescale": None}, "rescale=None"),
        ({"overrides": {"first": 0.1}}, "overrides=.*integer layers"),
        ({"overrides": {"1.5": 0.1}}, "overrides=.*integer layers"),
        ({"overrides": {None: 0.1}}, "overrides=.*integer layers"),
        ({"overrides": [[0, 0.1]]}, "overrides="),
    ],
)
def test_a_bad_dict_is_named(data, named):
    whole = {**DiffRatioConfig().to_dict(), **data} if isinstance(data, dict) else data
    with pytest.raises(ValueError, match=named):
        DiffRatioConfig.from_dict(whole)


@pytest.mark.parametrize("name", sorted(DiffRatioConfig().to_dict().keys() - {"rounding"}))
def test_a_missing_entry_is_named(name):
    data = DiffRatioConfig().to_dict()
    del data[name]
    with pytest.raises(ValueError, match=rf"misses \['{name}'\]"):
        DiffRatioConfig.from_dict(data)


def test_what_was_written_before_there_was_a_rounding_is_read():
    data = DiffRatioConfig(0.2).to_dict()
    assert data.pop("rounding") == "ceil" and DiffRatioConfig.from_dict(data) == DiffRatioConfig(0.2)


def test_reading_a_dict_leaves_it_alone():
    data = DiffRatioConfig(overrides={1: 0.2}).to_dict()
    before = json.dumps(data)
    DiffRatioConfig.from_dict(data)
    assert json.dumps(data) == before


def test_a_config_cannot_be_changed_through_what_it_was_made_of_or_gave_out():
    values = [0.1, 0.2]
    overrides = {0: values}
    config = DiffRatioConfig(overrides=overrides, num_regions=2)
    table = config.kept_tenths(1)
    values[0] = 7.0
    overrides[5] = 0.3
    config.to_dict()["overrides"]["0"][1] = 9.0
    assert config.kept_tenths(1) == table
    with pytest.raises(AttributeError):
        config.compression = 0.5
