"""What an MLP has between its products."""
