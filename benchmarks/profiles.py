"""ICC profiles of well-known RGB and grey colour spaces, written from their published primaries and curves.

Pillow makes profiles of sRGB, Lab and XYZ alone; measuring and testing what becomes of photos in other spaces needs
theirs. The layout is that of ICC.1:2022: a header, a table of tags, and matrix and curves of a display.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
"""Chromaticity x, y."""

D50, D65 = (0.3457, 0.3585), (0.3127, 0.3290)

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""Parameters g, a, b, c, d of the ICC's third kind of curve: (a x + b)^g from d on, below it c x."""

BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def rgb_profile(name: str, primaries: Sequence[Point], white: Point, curve: Sequence[float]) -> bytes:
    """Return a display's profile: chromaticities of its red, green, blue and white, and its curve.

    curve: one number, a gamma, or five, as those of `SRGB_CURVE`.
    """
    corners = np.array([_xyz(point) for point in primaries]).T
    matrix = _adaptation(white) @ corners @ np.diag(np.linalg.solve(corners, _xyz(white)))
    tags = {"wtpt": _xyz_tag(_xyz(D50))}
    for channel, column in zip("rgb", matrix.T, strict=True):
        tags[f"{channel}XYZ"], tags[f"{channel}TRC"] = _xyz_tag(column), _curve_tag(curve)
    return _profile(name, "RGB ", tags)


def grey_profile(name: str, curve: Sequence[float]) -> bytes:
    """Return the profile of a grey display with a curve as in `rgb_profile`."""
    return _profile(name, "GRAY", {"wtpt": _xyz_tag(_xyz(D50)), "kTRC": _curve_tag(curve)})


def cmyk_profile(name: str) -> bytes:
    """Return the profile of a made-up press: a table of two points per ink, the last of them black."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)  # the last one varies fastest
    lightness = 100 * (1 - 0.2 * inks[:, :3].sum(axis=1)) * (1 - 0.8 * inks[:, 3])
    red_green = 60 * (inks[:, 1] - inks[:, 0]) * (1 - inks[:, 3])
    yellow_blue = 60 * (inks[:, 2] - inks[:, 0]) * (1 - inks[:, 3])
    points = np.stack([lightness * 2.55, red_green + 128, yellow_blue + 128], axis=1)
    identity = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(np.eye(3).ravel())
    table += identity * 4 + points.round().clip(0, 255).astype(np.uint8).tobytes() + identity * 3
    return _profile(name, "CMYK", {"wtpt": _xyz_tag(_xyz(D50)), "A2B0": table}, device="prtr", connection="Lab ")


def _xyz(point: Point) -> NDArray[np.float64]:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _adaptation(white: Point) -> NDArray[np.float64]:
    """Return the matrix that maps colours under `white` to those that look the same under D50."""
    scale = np.diag((BRADFORD @ _xyz(D50)) / (BRADFORD @ _xyz(white)))
    return np.asarray(np.linalg.inv(BRADFORD) @ scale @ BRADFORD)


def _fixed(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _xyz_tag(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve_tag(curve: Sequence[float]) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", {1: 0, 5: 3}[len(curve)], 0) + _fixed(curve)


def _text_tag(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _profile(
    name: str, space: str, tags: Mapping[str, bytes], *, device: str = "mntr", connection: str = "XYZ "
) -> bytes:
    tags = {"desc": _text_tag(name), "cprt": _text_tag("No copyright"), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag.encode(), start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sIIIQI12s48s",
        start + len(body), b"\0\0\0\0", 0x04300000, device.encode(), space.encode(), connection.encode(), bytes(12),
        b"acsp", b"\0\0\0\0", 0, 0, 0, 0, 0, _fixed(_xyz(D50)), b"",
    )  # fmt: skip
    return header + table + body


P3_PRIMARIES = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))

SRGB = rgb_profile("sRGB", ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, SRGB_CURVE)

DISPLAY_P3 = rgb_profile("Display P3", P3_PRIMARIES, D65, SRGB_CURVE)

ADOBE_RGB = rgb_profile("Adobe RGB (1998)", ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, (563 / 256,))

PROPHOTO_RGB = rgb_profile("ProPhoto RGB", ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, (1.8,))
