"""What computes the forward pass: PyTorch, the reference, or OpenVINO on CPUs."""
