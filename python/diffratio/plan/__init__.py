"""What compression would cost and save, before anything is trained."""

from .device import DEVICES, Device
from .measured import Measured
from .plan import LayerPlan, Plan, plan

__all__ = ["DEVICES", "Device", "LayerPlan", "Measured", "Plan", "plan"]
