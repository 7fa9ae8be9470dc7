"""One listing: every kind of input, the predictions, their explanation, and the request as code."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from model.config import PreprocessConfig
from model.inputs.preprocess import ImageTransform
from service.http.pages import STATIC
from tests.browser.conftest import (
    ANY_PORT,
    COLUMNS,
    ROWS,
    OpenPlayground,
    Playground,
    PointedPredictor,
    Site,
    image_file,
    serving,
)
from tests.service.fake_predictor import DISAGREEING, UNFAMILIAR

HOSTILE = '<img src=x onerror="document.title=1"> & {{7*7}}'


def test_an_example_is_classified_with_one_click(playground: Playground) -> None:
    playground.page.get_by_role("button", name="Navy shirt").click()
    playground.expect_answer()
    expect(playground["#image"]).to_be_visible()
    expect(playground["#title"]).to_have_value("Turtle Check Men Navy Blue Shirt")
    title = re.compile(r"^[012] of 2 attributes accepted at 95 % precision")
    expect(playground["#predictions-title"]).to_have_text(title)
    expect(playground["#state"]).to_have_text("Ready")
    expect(playground["#model"]).to_contain_text("fake 0123456789ab")


def test_the_page_shows_the_answer_of_the_service(playground: Playground, site: Site) -> None:
    with playground.page.expect_response("**/v1/classify") as response:
        playground["#title"].fill("Red Winter Coat")
    playground.expect_answer()
    for name, found in response.value.json()["attributes"].items():
        row = playground[f"[data-attribute={name}]"]
        expect(row.locator(".label")).to_have_text(found["label"])
        expect(row.locator(".verdict")).to_have_text("Accepted" if found["accepted"] else "Not accepted")
        expect(row.locator(".why")).to_contain_text(f"{100 * found['confidence']:.1f} %")
        expect(row.locator(".mark")).to_have_attribute("style", re.compile(rf"{100 * found['threshold']:g}%"))
        expect(row.locator(".shares")).to_have_text("Image 0 %Title 100 %")
        expect(row.locator(".other")).to_have_count(
            sum(each["confidence"] >= 0.0005 for each in found["candidates"][1:])
        )


WHY = {
    "low_confidence": "Not certain enough. ",
    "modalities_disagree": "Image and title contradict each other. ",
}


def test_each_row_says_why_its_label_is_not_accepted(playground: Playground) -> None:
    playground.choose(image_file())
    playground.expect_answer()
    with playground.page.expect_response("**/v1/classify/upload") as response:
        playground["#title"].fill(f"season {DISAGREEING}")
    playground.expect_answer()
    expect(playground["#words"]).to_contain_text(DISAGREEING)
    found = response.value.json()["attributes"]
    assert found["season"]["abstention"] == "modalities_disagree"
    for name, attribute in found.items():
        confidence = f"Confidence {100 * attribute['confidence']:.1f} % (minimum 50.0 %)"
        expect(playground[f"[data-attribute={name}] .why"]).to_have_text(
            WHY.get(attribute["abstention"], "") + confidence
        )
    playground.page.get_by_role("radio", name="99 %").check()
    expect(playground["[data-attribute=season] .why"]).to_contain_text(
        "Not shown to be right 99 % of the time. Confidence"
    )


def test_an_unfamiliar_listing_has_a_banner_that_is_announced(playground: Playground) -> None:
    playground["#title"].fill(f"{UNFAMILIAR} with two batteries")
    playground.expect_answer()
    remark = playground.page.get_by_role("list", name="About this listing").get_by_role("listitem")
    expect(remark).to_have_count(1)
    expect(remark).to_contain_text("Unfamiliar listing")
    expect(remark).to_contain_text("Familiarity: 0.001")
    expect(playground["#announce"]).to_contain_text("Unfamiliar listing: It is unlike")
    expect(playground[".verdict"]).to_have_text(["Not accepted"] * 2)
    expect(playground[".why >> nth=0"]).to_contain_text(
        "Unlike the products that the model was calibrated on. Confidence"
    )
    playground["#title"].fill("Red Coat")
    expect(playground["#words"]).to_contain_text("Coat")
    expect(playground[".remark"]).to_have_count(0)


@pytest.mark.parametrize(
    ("title", "said"),
    [
        (
            f"shirt that {DISAGREEING}",
            "They seem to be of different products, so no prediction is accepted. Agreement: 0.002",
        ),
        (f"season {DISAGREEING}", "Each taken alone, they say something else about: Season."),
    ],
)
def test_a_contradiction_of_image_and_title_has_a_banner(playground: Playground, title: str, said: str) -> None:
    playground["#title"].fill(title)
    playground.choose(image_file())
    playground.expect_answer()
    expect(playground[".remark"]).to_contain_text(["Image and title contradict each other"])
    expect(playground[".remark"]).to_contain_text([said])
    playground["#remove"].click()
    expect(playground[".remark"]).to_have_count(0)


def test_warnings_are_shown_and_those_that_the_page_does_not_know_too(playground: Playground) -> None:
    def with_another(route: Any) -> None:
        reply = route.fetch()
        route.fulfill(response=reply, json=reply.json() | {"warnings": ["title_truncated", "image_tiny"]})

    playground.page.route("**/v1/classify", with_another)
    playground["#title"].fill("Red Coat")
    expect(playground[".remark p"]).to_have_text(
        ["The title is longer than what the model reads: its end was cut.", "image tiny"]
    )


def test_a_missing_scope_gate_is_said_in_the_footer(open_playground: OpenPlayground) -> None:
    with serving(PointedPredictor(bare=True)) as site:
        playground = open_playground(site)
        expect(playground["#model"]).to_contain_text("without a scope gate")
        playground["#title"].fill("Red Coat")
        playground.expect_answer()
        expect(playground[".remark"]).to_have_count(0)


def test_title_and_image_are_sent_unchanged(playground: Playground, site: Site) -> None:
    playground["#title"].fill(f"  {HOSTILE}  ")
    playground.choose(image_file())
    playground.expect_answer()
    assert site.predictor.batches[-1] == [HOSTILE]
    expect(playground["#words .word > span"].first).to_have_text("<img")
    assert playground.page.title().startswith("Playground")
    assert playground["#words img"].count() == 0


def test_only_the_latest_request_is_shown(playground: Playground, site: Site) -> None:
    """The first answer is delayed; it must not replace the answer for a title typed after it."""
    held: list[Any] = []
    playground.page.route("**/v1/classify", lambda route: held.append(route) if not held else route.continue_())
    with playground.page.expect_request("**/v1/classify"):
        playground["#title"].fill("the first")
    with playground.page.expect_response("**/v1/classify"):
        playground["#title"].fill("the second")
    playground.expect_answer()
    playground["#tab-curl"].click()
    expect(playground["#code-text"]).to_contain_text("the second")
    expect(playground["#words"]).to_contain_text("second")


def test_typing_sends_one_request(playground: Playground) -> None:
    playground["#title"].press_sequentially("Red Coat", delay=20)
    playground.expect_answer()
    assert sum(url.endswith("/v1/classify") for url in playground.requests) == 1


def test_an_image_is_dropped(playground: Playground) -> None:
    transfer = playground.page.evaluate_handle(
        """async (address) => {
            const transfer = new DataTransfer();
            const bytes = await (await fetch(address)).blob();
            transfer.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
            return transfer;
        }""",
        "static/examples/red-dress.jpg",
    )
    playground.page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(playground["#dropping"]).to_be_visible()
    playground.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(playground["#dropping"]).to_be_hidden()
    playground.expect_answer()
    expect(playground["#code-text"]).to_contain_text("dropped.jpg")


def test_an_image_is_pasted(open_playground: OpenPlayground, site: Site) -> None:
    playground = open_playground(site, permissions=["clipboard-read", "clipboard-write"])
    playground.page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(40, 60);
            canvas.getContext("2d").fillRect(0, 0, 40, 60);
            await navigator.clipboard.write([new ClipboardItem({ "image/png": canvas.convertToBlob() })]);
        }"""
    )
    playground.page.keyboard.press("Control+V")
    playground.expect_answer()
    expect(playground["#image"]).to_be_visible()


def test_a_pasted_url_is_the_image_url(open_playground: OpenPlayground, site: Site) -> None:
    playground = open_playground(site, permissions=["clipboard-read", "clipboard-write"])
    playground.expected = ("Failed to load resource",)
    playground.page.evaluate("navigator.clipboard.writeText('http://127.0.0.1/shirt.jpg')")
    playground.page.keyboard.press("Control+V")
    expect(playground["#url"]).to_have_value("http://127.0.0.1/shirt.jpg")
    playground.expect_problem("image_url_forbidden")
    expect(playground["#image-placeholder"]).to_be_visible()


def test_an_image_is_fetched_from_its_url(open_playground: OpenPlayground, tmp_path: Path) -> None:
    """The page shows it once the service has fetched it, with the heat map."""
    with serving(allow_private_image_hosts=True, image_ports=ANY_PORT) as site:
        playground = open_playground(site)
        playground["#url"].fill(f"{site.url}/static/examples/red-dress.jpg")
        playground.expect_answer()
        expect(playground[".shares >> nth=0"]).not_to_have_text("Image 0 %Title 100 %")
        expect(playground["#image"]).to_be_visible()
        assert playground["#image"].evaluate("image => image.naturalWidth") > 0
        playground[".prediction >> nth=0"].hover()
        expect(playground["#legend"]).to_be_visible()
        run_copied(playground, "python", tmp_path)


def test_a_url_must_be_valid(playground: Playground) -> None:
    playground["#url"].fill("www.example.com/shirt.jpg")
    expect(playground["#url-hint"]).to_contain_text("must start with https://")
    expect(playground["#url"]).to_have_attribute("aria-invalid", "true")
    playground["#url"].fill("")
    expect(playground["#url-hint"]).to_be_empty()


def test_everything_works_by_keyboard(open_playground: OpenPlayground, site: Site) -> None:
    """Choose an example, walk through the predictions, pin one, and switch the code tabs, all by keyboard."""
    playground = open_playground(site, cleared=False)
    playground.expect_answer()
    page = playground.page
    page.evaluate("file.addEventListener('click', (event) => { file.dataset.opened = event.type })")

    def tab_to(selector: str) -> None:
        for _ in range(30):
            if playground[selector].evaluate("node => node === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached with Tab")

    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the listing")).to_be_focused()
    tab_to("#examples button >> nth=1")
    page.keyboard.press("Enter")
    playground.expect_answer()
    tab_to("#replace")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('file').dataset.opened")
    tab_to(".prediction .head >> nth=0")
    expect(playground["#shown"]).to_have_class(re.compile("heated"))
    expect(playground["#words"]).to_have_class(re.compile("weighted"))
    page.keyboard.press("Enter")
    expect(playground[".head >> nth=0"]).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(playground[".head >> nth=0"]).to_have_attribute("aria-pressed", "false")
    tab_to("#tab-curl")
    page.keyboard.press("ArrowRight")
    expect(playground["#tab-python"]).to_be_focused()
    expect(playground["#code-text"]).to_contain_text("import httpx")
    page.keyboard.press("End")
    expect(playground["#code-text"]).to_contain_text('"modality_attention"')


def test_the_focus_stays_when_the_predictions_change(playground: Playground) -> None:
    playground.page.get_by_role("button", name="Red dress").click()
    playground.expect_answer()
    playground[".head >> nth=1"].focus()
    playground.page.evaluate("document.querySelector('#precisions input').click()")
    expect(playground["#predictions-title"]).to_contain_text("90 %")
    expect(playground[".head >> nth=1"]).to_be_focused()


def test_a_precision_without_a_certified_threshold(playground: Playground) -> None:
    playground["#title"].fill("Red Coat")
    playground.page.get_by_role("radio", name="99 %").check()
    expect(playground["#predictions-title"]).to_have_text("0 of 2 attributes accepted at 99 % precision")
    expect(playground[".why >> nth=0"]).to_contain_text("Not shown to be right 99 %")
    assert playground[".mark"].count() == 0


def test_the_explanation_is_shown_and_put_into_words(playground: Playground) -> None:
    playground.expected = ("Canvas2D: Multiple readback",)  # caused by this test
    playground["#title"].fill("Men Black Sports Shoes")
    playground.choose(image_file())  # of one colour: without a ground that would be left out
    playground.expect_answer()
    playground[".prediction >> nth=0"].hover()
    expect(playground["#explanation"]).to_contain_text(re.compile("on the image, mainly the (upper )?left"))
    expect(playground["#explanation"]).to_contain_text("“Shoes”")
    assert alpha(playground, 0.1, 0.25) > 110
    assert alpha(playground, 0.9, 0.9) < 50
    playground["h1 >> nth=0"].hover()
    assert alpha(playground, 0.1, 0.25) == 0
    described = playground[".head >> nth=0"].get_attribute("aria-describedby")
    expect(playground[f"#{described}"]).to_contain_text("“Shoes”")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.1, 0.9], "Based 40 % on the image; 60 % on the title, mainly “Coat”."),
        ([0.5, 0.5], "Based 40 % on the image; 60 % on the title."),
        ([1.0], "Based 40 % on the image; 60 % on the title, mainly “Red”."),
    ],
)
def test_no_part_is_named_where_all_weights_are_equal(
    playground: Playground, weights: list[float], expected: str
) -> None:
    frame = {"left": 0, "top": 0, "right": 1, "bottom": 1}
    words = [{"token": word, "weight": weight} for word, weight in zip(("Red", "Coat"), weights, strict=False)]
    prediction = {
        "modality_attention": {"image": 0.4, "text": 0.6},
        "explanation": {
            "image": {"rows": 1, "columns": 2, "weights": [[0.5, 0.5]], "frame": frame},
            "text": words,
        },
    }
    describe = "async (prediction) => (await import('/static/playground/explanation.js')).describe(prediction)"
    assert playground.page.evaluate(describe, prediction) == expected


def test_heat_does_not_lie_on_empty_ground(playground: Playground) -> None:
    """A dark product on white ground: the tint is on the product, and the picture keeps its colours."""
    playground.expected = ("Canvas2D: Multiple readback",)  # caused by this test
    picture = Image.new("RGB", (200, 250), "white")
    ImageDraw.Draw(picture).rectangle((30, 20, 170, 230), fill="navy")
    file = io.BytesIO()
    picture.save(file, "PNG")
    playground.choose(image_file() | {"buffer": file.getvalue()})
    playground.expect_answer()
    playground[".prediction >> nth=0"].hover()
    assert alpha(playground, 0.2, 0.3) > 80
    assert alpha(playground, 0.05, 0.3) == 0
    assert playground["#image"].evaluate("image => getComputedStyle(image).filter") == "none"


def test_what_the_service_refuses_is_not_loaded_by_the_browser(playground: Playground) -> None:
    playground.expected = ("Failed to load resource",)
    url = "http://127.0.0.1/shirt.jpg"
    playground["#url"].fill(url)
    playground.expect_problem("image_url_forbidden")
    expect(playground["#image-placeholder"]).to_contain_text("once the service has fetched it")
    assert url not in playground.requests


def test_alternatives_that_would_be_shown_as_0_are_left_out(playground: Playground) -> None:
    def nearly_certain(route: Any) -> None:
        reply = route.fetch()
        found = reply.json()
        for prediction in found["attributes"].values():
            prediction["candidates"] = [
                {"label": label, "confidence": confidence}
                for label, confidence in (("Red", 0.9991), ("Blue", 0.0005), ("Black", 0.0004))
            ]
        route.fulfill(response=reply, json=found)

    playground.page.route("**/v1/classify", nearly_certain)
    playground["#title"].fill("Red Coat")
    expect(playground[".prediction >> nth=0"].locator(".other")).to_have_text(["Blue 0.1 %"])


def test_an_old_answer_is_not_shown_as_the_new_ones(playground: Playground) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    playground["#title"].fill("Red Coat")
    playground.expect_answer()
    playground.page.route("**/v1/classify", hold)
    playground["#title"].fill("Blue Coat")
    expect(playground["#predictions-hint"]).to_have_text("Waiting for the service.")
    expect(playground.predictions).to_have_count(0)
    held[0].continue_()
    playground.expect_answer()


def alpha(playground: Playground, x: float, y: float) -> int:
    """The opacity of the heat map, from 0 to 255, at a point given as fractions of the image."""
    value: int = playground["#heat"].evaluate(
        "(canvas, [x, y]) => canvas.getContext('2d').getImageData(canvas.width * x, canvas.height * y, 1, 1).data[3]",
        [x, y],
    )
    return value


@pytest.mark.parametrize("resize", ["longest", "shortest", "squash"])
@pytest.mark.parametrize("framing", ["product", "whole"])
@pytest.mark.parametrize("size", [(60, 80), (300, 100), (90, 333), (641, 479)])
def test_the_heat_map_lies_where_the_model_saw_the_image(
    playground: Playground,
    size: tuple[int, int],
    framing: Literal["product", "whole"],
    resize: Literal["longest", "shortest", "squash"],
) -> None:
    """A black spot gives weight to the patch that `ImageTransform` puts it in: the page must draw it on the spot."""
    transform = ImageTransform(PreprocessConfig(image_size=(80, 64), context_length=8, resize=resize, framing=framing))
    x, y = 0.45 * size[0], 0.55 * size[1]  # inside every crop
    spotted = Image.new("RGB", size, "white")
    ImageDraw.Draw(spotted).ellipse((x - 8, y - 8, x + 8, y + 8), fill="black")
    darkness = 255.0 - transform(spotted)[0].reshape(ROWS, 16, COLUMNS, 16).mean(axis=(1, 3))
    left, top, right, bottom = transform.seen(transform.find(spotted).box)
    frame = {"left": left / size[0], "top": top / size[1], "right": right / size[0], "bottom": bottom / size[1]}
    grid = {"rows": ROWS, "columns": COLUMNS, "weights": darkness.tolist(), "frame": frame}
    centre = playground.page.evaluate(
        """async ([grid, size]) => {
            const { drawHeatMap } = await import("/static/playground/explanation.js");
            const canvas = document.createElement("canvas");
            canvas.style = `width: ${size[0]}px; height: ${size[1]}px`;
            document.querySelector("footer").append(canvas);
            drawHeatMap(canvas, grid);
            const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let [x, y, total] = [0, 0, 0];
            for (let at = 0; at < width * height; at += 1) {
                const heat = data[4 * at + 3];
                x += heat * (at % width + 0.5) / width;
                y += heat * (Math.floor(at / width) + 0.5) / height;
                total += heat;
            }
            return [x / total, y / total];
        }""",
        [grid, size],
    )
    patch = (frame["right"] - left / size[0]) / COLUMNS, (frame["bottom"] - top / size[1]) / ROWS
    assert abs(centre[0] - 0.45) < 0.6 * patch[0]
    assert abs(centre[1] - 0.55) < 0.6 * patch[1]


def test_a_crop_has_no_heat_beyond_its_edges(playground: Playground) -> None:
    """`shortest`: the model saw the middle half of the image, so the heat map starts at a quarter."""
    window = playground.page.evaluate(
        """async () => (await import("/static/playground/explanation.js"))
            .windowOf({ left: 0.25, top: 0, right: 0.75, bottom: 1 })"""
    )
    assert window == {"left": -0.5, "top": 0, "width": 2, "height": 1}


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("form", ["curl", "python"])
def test_the_copied_request_runs(playground: Playground, tmp_path: Path, form: str, with_image: bool) -> None:
    """The shell or Python sends the same request again, even with a hostile title and file name."""
    title = '@it\'s "quoted" $HOME `id` \\ 50% <b>'
    if with_image:
        name = "a \"b\" 'c';$d.png"
        playground.choose(image_file(name))
        (tmp_path / name).write_bytes(image_file()["buffer"])
    playground["#title"].fill(title)
    playground.expect_answer()
    expect(playground["#words"]).to_contain_text("50%")
    run_copied(playground, form, tmp_path)


@pytest.mark.parametrize("form", ["curl", "python"])
def test_the_copied_request_takes_the_key_from_the_environment(
    open_playground: OpenPlayground, tmp_path: Path, form: str
) -> None:
    with serving(api_keys=("right",)) as site:
        playground = open_playground(site, cleared=False)
        playground.expected = ("Failed to load resource",)
        playground["#key"].fill("right")
        playground.page.get_by_role("button", name="Use this key").click()
        playground.page.get_by_role("button", name="Red dress").click()
        expect(playground["#code-text"]).to_contain_text("red-dress")
        playground.expect_answer()
        shutil.copy(STATIC / "examples" / "red-dress.jpg", tmp_path)
        run_copied(playground, form, tmp_path, CMA_CLIP_KEY="right")


def run_copied(playground: Playground, form: str, folder: Path, **environment: str) -> None:
    """Run the code shown on the page, and compare its answer with the one on the page."""
    playground["#tab-json"].click()
    shown = json.loads(playground["#code-text"].inner_text())
    playground[f"#tab-{form}"].click()
    code = playground["#code-text"].inner_text()
    assert "right" not in code
    command = ["/bin/sh", "-c", code] if form == "curl" else [sys.executable, "-c", f"{code}print(response.text)"]
    done = subprocess.run(  # noqa: S603 - our own code
        command, cwd=folder, capture_output=True, check=True, timeout=20, env=os.environ | environment
    )
    assert json.loads(done.stdout.splitlines()[-1])["attributes"] == shown["attributes"]


def test_the_request_is_copied(open_playground: OpenPlayground, site: Site) -> None:
    playground = open_playground(site, permissions=["clipboard-read", "clipboard-write"])
    playground["#title"].fill("Red Coat")
    playground["#copy"].click()
    expect(playground["#copied"]).to_have_text("Copied.")
    assert playground.page.evaluate("navigator.clipboard.readText()") == playground["#code-text"].text_content()


def test_without_a_clipboard_the_text_is_selected(playground: Playground) -> None:
    playground.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    playground["#title"].fill("Red Coat")
    playground["#copy"].click()
    expect(playground["#copied"]).to_contain_text("The text is selected")
    assert playground.page.evaluate("getSelection().toString()").startswith("curl")


def test_removing_the_image_keeps_the_title(playground: Playground) -> None:
    playground.page.get_by_role("button", name="Red dress").click()
    playground.expect_answer()
    playground["#remove"].click()
    expect(playground[".shares >> nth=0"]).to_have_text("Image 0 %Title 100 %")
    playground["#title"].fill("")
    expect(playground.predictions).to_have_count(0)
    expect(playground["#predictions-hint"]).to_be_visible()
