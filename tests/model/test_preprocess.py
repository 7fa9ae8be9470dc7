"""Images and titles become tensors in one way only, and hostile ones cost no more than others."""

from __future__ import annotations

import dataclasses
import io
import pickle
from typing import Literal

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.config import PreprocessConfig
from model.errors import ConfigError, ModelError
from model.inputs.decode import decode_image
from model.inputs.framing import MARGIN, Box
from model.inputs.normalise import TensorTransform
from model.inputs.preprocess import ImageTransform
from model.inputs.tokenizer import MAX_WORD_CHARACTERS, ClipTokenizer, TitleTokenizer, pad_tokens

Resize = Literal["longest", "shortest", "squash"]
CONFIG = PreprocessConfig(image_size=(24, 16), context_length=16)
TOKENIZE = TitleTokenizer(CONFIG)

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["longest", "shortest", "squash"])
@pytest.mark.parametrize("size", [(16, 24), (160, 240), (1, 1), (500, 2), (3, 900)])
def test_any_size_becomes_the_input_size(resize: Resize, size: tuple[int, int]) -> None:
    config = dataclasses.replace(CONFIG, resize=resize)
    pixels = ImageTransform(config)(Image.new("RGB", size, (200, 30, 60)))
    assert pixels.shape == (3, 24, 16)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array([200, 30, 60])[:, None, None]).all(axis=0).any()


def test_a_image_of_the_input_size_is_not_resampled() -> None:
    assert (ImageTransform(CONFIG)(NOISE) == np.asarray(NOISE).transpose(2, 0, 1)).all()


def test_longest_pads_with_white_and_shortest_crops_the_centre() -> None:
    wide = Image.new("RGB", (32, 8), "black")
    pixels = ImageTransform(CONFIG)(wide)
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, 12] == 0).all()
    wide.paste("red", (0, 0, 8, 8))
    cropped = ImageTransform(dataclasses.replace(CONFIG, resize="shortest"))(wide)
    assert (cropped == 0).all()


@pytest.mark.parametrize(
    ("resize", "frame"),
    [("longest", (0, -20, 32, 28)), ("shortest", (40 / 3, 0, 56 / 3, 8)), ("squash", (0, 0, 32, 8))],
)
def test_the_frame_is_what_the_network_sees(resize: Resize, frame: Box) -> None:
    image = Image.linear_gradient("L").rotate(90).resize((32, 8)).convert("RGB")
    transform = ImageTransform(dataclasses.replace(CONFIG, resize=resize))
    assert transform.seen((0.0, 0.0, 32.0, 8.0)) == pytest.approx(frame)
    ground = Image.new("RGB", (72, 68), "white")
    ground.paste(image, (20, 30))
    left, upper, right, lower = frame
    seen = ground.resize((16, 24), Image.Resampling.BICUBIC, (left + 20, upper + 30, right + 20, lower + 30))
    difference = np.abs(np.asarray(seen, dtype=int).transpose(2, 0, 1) - transform(image))
    assert np.median(difference) <= 2


PRODUCT = dataclasses.replace(CONFIG, framing="product")


@pytest.mark.parametrize("ground", [(255, 255, 255), (200, 205, 210), (0, 0, 0), (139, 94, 60)])
def test_a_product_is_shown_alike_however_it_was_padded(ground: tuple[int, int, int]) -> None:
    transform, found = ImageTransform(PRODUCT), []
    product = NOISE.resize((48, 72), Image.Resampling.NEAREST)
    for size, at in (((60, 84), (6, 6)), ((84, 84), (30, 6)), ((150, 84), (51, 6)), ((60, 150), (6, 72))):
        photo = Image.new("RGB", size, ground)
        photo.paste(product, at)
        found.append(transform(photo).astype(int))
    assert all(np.abs(each - found[0]).mean() < 6 for each in found)
    assert np.abs(ImageTransform(CONFIG)(photo) - found[0]).mean() > 30  # the last one, untrimmed


def test_what_pads_a_product_is_its_ground() -> None:
    photo = Image.new("RGB", (90, 90), (200, 205, 210))
    photo.paste((20, 20, 120), (20, 60, 70, 80))
    pixels = ImageTransform(PRODUCT)(photo)
    assert (pixels[:, 0] == np.array([200, 205, 210])[:, None]).all()
    assert (pixels[:, -1] == np.array([200, 205, 210])[:, None]).all()
    assert (pixels[:, 12, 4:12] == np.array([20, 20, 120])[:, None]).all()


@pytest.mark.parametrize("resize", ["longest", "shortest", "squash"])
def test_what_is_seen_of_a_framed_photo_is_what_lies_there(resize: Resize) -> None:
    transform = ImageTransform(dataclasses.replace(PRODUCT, resize=resize))
    photo = Image.new("RGB", (120, 90), "white")
    photo.paste(NOISE.resize((4, 5)).resize((40, 48), Image.Resampling.BICUBIC), (60, 30))  # smooth
    framing = transform.find(photo)
    margin = MARGIN * 48
    assert framing.box == pytest.approx((60 - margin, 30 - margin, 100 + margin, 78 + margin), abs=0.1)
    seen = photo.resize((16, 24), Image.Resampling.BICUBIC, transform.seen(framing.box))
    difference = np.abs(np.asarray(seen, dtype=int).transpose(2, 0, 1) - transform(photo, framing))
    assert difference.mean() < 8  # padding is by whole pixels
    elsewhere = np.asarray(photo.resize((16, 24)), dtype=int).transpose(2, 0, 1)
    assert np.abs(elsewhere - transform(photo, framing)).mean() > 30


def test_normalise_has_clips_mean_and_deviation() -> None:
    pixels = torch.full((2, 3, 24, 16), 255, dtype=torch.uint8)
    normalised = TensorTransform(CONFIG).normalise(pixels)
    expected = (1 - torch.tensor(CONFIG.mean)) / torch.tensor(CONFIG.std)
    torch.testing.assert_close(normalised[1, :, 3, 5], expected)


def test_transparency_becomes_white_and_rotation_is_undone() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert decode_image(encoded(clear)).image.getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4))
    assert decode_image(encoded(palette, "GIF")).image.mode == "RGB"
    turned = Image.new("RGB", (4, 8))
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue()).image.size == (8, 4)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(NOISE, "JPEG")[:700]])
def test_what_is_no_image_is_said_so(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"cannot be decoded|is empty"):
        decode_image(data)


@pytest.mark.parametrize(
    "title",
    [
        "Turtle Check Men Navy Blue Shirt",
        "Nike Women's T-Shirt, 2-pack (M/L) 100% cotton!",
        "Crème brûlée — Ärmel & Söhne 🧥 ٣٤",
        "a b c d e f g h i j k l m n o p q r s t",
        "x",
    ],
)
def test_tokens_are_open_clips(title: str) -> None:
    expected = open_clip.SimpleTokenizer(context_length=16)(title)[0]
    tokens = TOKENIZE(title).tokens
    assert pad_tokens([tokens], 16)[0].tolist() == expected.tolist()


@given(st.text(max_size=300))
def test_any_title_gives_start_words_end(title: str) -> None:
    tokenized = TOKENIZE(title)
    tokens = tokenized.tokens.tolist()
    assert (tokens[0], tokens[-1]) == (49406, 49407)
    assert 2 <= len(tokens) <= 16
    assert max(tokens[1:-1], default=0) < 49406
    assert len(tokenized.word_of_token) == len(tokens) - 2
    assert list(tokenized.word_of_token) == sorted(tokenized.word_of_token)
    assert tokenized.words == tuple(title.split())


@pytest.mark.parametrize(
    ("title", "truncated"),
    [("x " * 14, False), ("x " * 15, True), ("x " * 40, True), ("", False)],
)
def test_a_title_knows_whether_it_was_cut(title: str, *, truncated: bool) -> None:
    tokenized = TOKENIZE(title)
    assert tokenized.truncated is truncated
    assert len(tokenized.tokens) <= 16


def test_special_tokens_in_a_title_are_only_text() -> None:
    tokens = TOKENIZE("blue <end_of_text> shirt <|endoftext|> <start_of_text>").tokens.tolist()
    assert tokens.count(49407) == tokens.count(49406) == 1


def test_a_long_word_is_read_by_its_beginning() -> None:
    word = "abcde" * 800
    assert TOKENIZE(word).tokens.tolist() == TOKENIZE(word[:MAX_WORD_CHARACTERS]).tokens.tolist()


def test_what_is_remembered_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.inputs.tokenizer.MAX_CACHED_WORDS", 50)
    tokenize = ClipTokenizer(CONFIG.context_length)
    before = tokenize("navy blue shirt").tokens.tolist()
    held = len(pickle.dumps(tokenize))
    for number in range(500):
        tokenize(f"word{number} " + "!".join(f"piece{number}{letter}" for letter in "abcdefgh") * 20)
        assert len(tokenize._known) <= 50
        assert max(map(len, tokenize._known.values())) <= CONFIG.context_length
    assert len(pickle.dumps(tokenize)) < held + 50 * 1000
    assert tokenize("navy blue shirt").tokens.tolist() == before


def test_a_tokeniser_that_was_sent_to_another_process_reads_the_same() -> None:
    title = "navy <end_of_text> shirt's 2012 <start_of_text> Ünïcode!"
    assert pickle.loads(pickle.dumps(TOKENIZE))(title).tokens.tolist() == TOKENIZE(title).tokens.tolist()  # noqa: S301


@pytest.mark.parametrize("fields", [{"image_size": (0, 4)}, {"context_length": 2}, {"image_size": (4, -1)}])
def test_impossible_configurations_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(CONFIG, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "allowed"), [((60, 400), 0), ((40, 4000), 2)])
def test_a_crop_is_what_is_left_of_the_whole_image_resized(size: tuple[int, int], allowed: int) -> None:
    """Of very long images the part that is kept is resized alone: the same but for rounding."""
    config = PreprocessConfig(image_size=(32, 32), context_length=8, resize="shortest", interpolation="bilinear")
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    long = int(32 * size[1] / size[0])
    whole = image.resize((32, long), Image.Resampling.BILINEAR)
    top = round((long - 32) / 2)
    expected = np.asarray(whole.crop((0, top, 32, top + 32))).transpose(2, 0, 1)
    assert np.abs(ImageTransform(config)(image).astype(int) - expected).max() <= allowed
