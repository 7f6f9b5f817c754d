"""The levels that can be measured, from one operator to a sampling loop."""
