"""Fuzzing of the image decoder: files that are taken apart, damaged and put together again. `make fuzz` runs it."""
