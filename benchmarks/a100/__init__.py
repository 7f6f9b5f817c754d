"""The efficiency columns of the paper's Tables 1 and 2 and its figure 3, measured with random weights."""
