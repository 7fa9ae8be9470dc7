"""What a checkpoint is worth: calibration, held-out predictions, scores, plots."""
