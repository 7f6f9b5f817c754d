"""The paper's figures, drawn from a run: no display is needed."""
