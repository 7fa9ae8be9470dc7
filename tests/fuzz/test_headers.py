"""What is told from a file's header before decoding, against what the decoders then really produce."""

from __future__ import annotations

import io
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.hostile_images import AVIF_OF_144_MEGAPIXELS, webp_of_one_colour
from model.errors import ImageError, ImageSizeError
from model.inputs.decode import decode_image
from model.inputs.limits import Limits, check_header, sniff, webp_size
from tests.fuzz.grammar import GRAMMARS
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import honest, kept

# Pillow warns of metadata that it cannot read, and of many pixels: here the files are damaged on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

sides = st.integers(1, 70)


def loaded_size(data: bytes) -> tuple[int, int]:
    """Return the size of the pixels that Pillow produces, of the first frame and without a draft."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.copy().size


@settings(max_examples=8, deadline=None, derandomize=True)
@given(width=sides, height=sides)
def test_of_honest_files_header_and_pixels_agree(width: int, height: int) -> None:
    for seed in honest(width, height):
        assert sniff(seed.data) == seed.file_format, seed.name
        assert loaded_size(seed.data) == (width, height), seed.name
        if seed.file_format == "WEBP":
            assert webp_size(seed.data) == (width, height), seed.name
        decoded = decode_image(seed.data, limits=Limits(max_pixels=width * height))
        assert sorted(decoded.image.size) == sorted((width, height)), seed.name  # the camera's orientation is undone
        with pytest.raises(ImageSizeError, match=f"{width} × {height}"):
            decode_image(seed.data, limits=Limits(max_pixels=width * height - 1))


@pytest.mark.parametrize("file_format", GRAMMARS)
def test_no_damaged_file_has_more_pixels_than_were_admitted(file_format: str) -> None:
    """Whatever headers say, and however often: what comes out has no more pixels than the limit."""
    files = [seed.data for seed in (*honest(), *kept()) if seed.file_format == file_format]
    files = [data for data in files if data != AVIF_OF_144_MEGAPIXELS]  # which takes a worker's limits, and time
    chance, limits = Random(3), Limits(max_pixels=300)  # honest files have 240
    admitted: list[int] = []
    decoded = 0
    for _ in range(250):
        data = mutated(chance.choice(files), file_format, files, chance)
        try:
            image = decode_image(data, limits=limits, admit=lambda cost: admitted.append(cost.nbytes)).image
        except (ImageError, MemoryError):
            continue
        decoded += 1
        assert image.width * image.height <= limits.max_pixels
        assert admitted.pop() > 3 * image.width * image.height
    assert decoded >= 10


def test_pillow_opens_as_the_same_format_what_the_first_bytes_announce() -> None:
    for seed in (*honest(), *kept()):
        with Image.open(io.BytesIO(seed.data)) as image:
            assert (
                image.format
                == seed.file_format
                == sniff(seed.data)
                == check_header(seed.data, Limits(max_pixels=10**9))
            )


@pytest.mark.parametrize("size", [(1, 1), (1, 16_383), (16_383, 16_383)])
def test_the_largest_webp_sizes_are_read_as_its_decoder_reads_them(size: tuple[int, int]) -> None:
    data = webp_of_one_colour(*size)
    assert webp_size(data) == size
    if size != (16_383, 16_383):  # its decoder allocates the canvas on opening: a gigabyte
        assert loaded_size(data) == size


def test_a_size_that_the_stream_does_not_keep_to_is_what_a_workers_limits_are_for() -> None:
    """The one difference that is known: `ispe` says 64 × 64, the stream has 144 megapixels."""
    with Image.open(io.BytesIO(AVIF_OF_144_MEGAPIXELS)) as image:
        assert image.size == (64, 64)
