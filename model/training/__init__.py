"""How checkpoints are made: pre-training, fine-tuning, the trainer they share, and recipes of several stages."""
