"""What computes the forward pass: PyTorch, the reference, or OpenVINO on CPUs."""

import sys

# OpenVINO and NNCF would report to their makers what they are used for; without this package they cannot.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
