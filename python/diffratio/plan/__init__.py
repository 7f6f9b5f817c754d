"""What compression would cost and save, before anything is trained."""

from .plan import LayerPlan, Memory, Plan, plan
from .times import DEVICES, Device, Measured

__all__ = ["DEVICES", "Device", "LayerPlan", "Measured", "Memory", "Plan", "plan"]
