"""What compression would cost and save, before anything is trained."""

from .device import DEVICES, Device
from .error import PredictionError, prediction_error
from .measured import Measured, shipped
from .plan import plan
from .result import LayerPlan, Plan

__all__ = [
    "DEVICES",
    "Device",
    "LayerPlan",
    "Measured",
    "Plan",
    "PredictionError",
    "plan",
    "prediction_error",
    "shipped",
]
