"""Data sets, flags, training loop and run directories."""
