"""The micro-batcher. No torch, no HTTP."""
