"""The blend of two bins' GELUs."""
