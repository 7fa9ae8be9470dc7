"""What the console script runs; heavy imports are inside the functions."""
