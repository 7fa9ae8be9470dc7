"""This service beside serving frameworks, all with the same checkpoint: `make bench`."""
