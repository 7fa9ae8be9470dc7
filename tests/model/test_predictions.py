from __future__ import annotations

from dataclasses import replace

import pytest

from model.errors import UncalibratedTargetError
from model.inference.predictions import Frame, ModelInfo, check_target_precision

INFO = ModelInfo(
    name="tiny",
    version="0123456789ab",
    backbone="none",
    parameters=0,
    device="cpu",
    dtype="float32",
    image_size=(4, 4),
    target_precisions=(0.9, 0.95),
)


def test_only_a_calibrated_target_precision_passes() -> None:
    check_target_precision(INFO, 0.9)
    with pytest.raises(
        UncalibratedTargetError, match=r"target precision 0\.99 was not calibrated; there are 0\.9, 0\.95$"
    ):
        check_target_precision(INFO, 0.99)
    with pytest.raises(
        UncalibratedTargetError, match="checkpoint tiny is not calibrated; run `cma-clip calibrate` first"
    ):
        check_target_precision(replace(INFO, target_precisions=()), 0.9)


def test_the_frame_of_a_box_is_in_fractions_of_the_image() -> None:
    assert Frame.of_box((-10.0, 0.0, 110.0, 25.0), (100, 50)) == Frame(left=-0.1, top=0.0, right=1.1, bottom=0.5)
