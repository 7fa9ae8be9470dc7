"""Many listings: folders and tables, their predictions, and errors of the service on the way."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Route, expect

from service.errors import Overloaded
from service.http.problems import problem
from tests.browser.conftest import ANY_PORT, OpenPlayground, Playground, PointedPredictor, Site, serving
from tests.service.conftest import encoded
from tests.service.fake_predictor import UNFAMILIAR

REFUSED = ("Failed to load resource",)


@pytest.fixture(scope="module")
def small() -> Iterator[Site]:
    """A service that accepts few listings per request, and fails on one of them."""

    def trouble(title: str | None) -> None:
        if title == "poison":
            raise ValueError("boom")

    with serving(PointedPredictor(trouble=trouble), max_listings=5) as site:
        yield site


def numbered(folder: Path, count: int) -> Path:
    """A table of `count` coats."""
    return write(folder, "id,title", *(f"{number},Coat {number}" for number in range(count))) / "styles.csv"


def write(folder: Path, header: str, *rows: str, images: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    (folder / "styles.csv").write_text("\n".join([header, *rows]))
    for position, name in enumerate(images):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(encoded((20 * position, 80, 120)))
    return folder


def read_many(playground: Playground, *files: Path) -> None:
    playground["#tab-many"].click()
    if files[0].is_dir():
        playground["#folder"].set_input_files(files[0])
    else:
        playground["#files"].set_input_files(files)


def expect_done(playground: Playground, count: int) -> None:
    expect(playground["#progress-text"]).to_contain_text(f"{count} of {count} listings processed.")
    expect(playground["#stop"]).to_be_hidden()


def download(playground: Playground) -> list[dict[str, str]]:
    with playground.page.expect_download() as found:
        playground["#download"].click()
    with Path(found.value.path()).open(newline="") as file:
        return list(csv.DictReader(file))


def classify(site: Site, **listing: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = httpx.post(f"{site.url}/v1/classify", json=listing).json()["attributes"]
    return attributes


def test_a_table_without_images(playground: Playground, site: Site, tmp_path: Path) -> None:
    """The download has what the service answers for each listing alone, accepted labels apart from suggestions."""
    rows = [f'{number},"Coat, number {number}"' for number in range(60)]
    read_many(playground, write(tmp_path / "shop", "id,title", *rows) / "styles.csv")
    expect_done(playground, 60)
    expect(playground["tbody tr"]).to_have_count(25)
    labels = download(playground)
    suffixes = ("", "_suggestion", "_confidence", "_abstention", "_image_weight")
    attributes = [f"{name}{suffix}" for name in ("baseColour", "season") for suffix in suffixes]
    origin = ["model_version", "calibration", "target_precision"]
    assert list(labels[0]) == ["id", *attributes, "familiarity", "error", *origin]
    assert {tuple(row[name] for name in origin) for row in labels} == {("0123456789ab", "ba9876543210", "0.95")}
    assert [row["id"] for row in labels] == [str(number) for number in range(60)]
    verdicts = set()
    for row in labels[:20]:
        expected = classify(site, title=f"Coat, number {row['id']}")["baseColour"]
        verdicts.add(expected["accepted"])
        assert row["baseColour"] == (expected["label"] if expected["accepted"] else "")
        assert row["baseColour_suggestion"] == ("" if expected["accepted"] else expected["label"])
        assert float(row["baseColour_confidence"]) == pytest.approx(expected["confidence"], abs=1e-6)
        assert row["baseColour_abstention"] == (expected["abstention"] or "")
        assert row["baseColour_image_weight"] == "0"
    assert verdicts == {True, False}
    assert labels[7]["familiarity"] == "0.5"
    assert {row["error"] for row in labels} == {""}


def test_a_folder_with_a_table(playground: Playground, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "shop",
        "id;gender;productDisplayName",
        "1;Men;Navy Shirt",
        "2;Men;Red; unquoted; Shirt",
        "3;Men;No Image",
        "4;Men;",
        images=("images/1.png", "images/2.png", "images/9.png"),
    )
    (folder / "notes.txt").write_text("hello")
    read_many(playground, folder)
    expect_done(playground, 4)
    expect(playground["#notes"]).to_contain_text("1 file ignored")
    expect(playground["#notes"]).to_contain_text("1 row repaired")
    expect(playground["#notes"]).to_contain_text("1 image ignored: not used by any row")
    expect(playground[".row-title"]).to_have_text(["Navy Shirt", "Red; unquoted; Shirt", "No Image"])
    expect(playground["td img"]).to_have_count(2)
    expect(playground["#notes"]).to_contain_text("Columns used: id, productDisplayName as title")
    expect(playground["#notes"]).to_contain_text("1 column not used: gender")
    playground.page.get_by_role("radio", name="1 listing failed").check()
    expect(playground["tbody tr"]).to_contain_text(["neither a title nor an image"])


def test_a_row_gets_the_image_that_it_names(playground: Playground, tmp_path: Path) -> None:
    """A row whose cell is ambiguous fails, and so does one of several that may mean the same image, unless images may
    be missing.
    """
    rows = (
        "1,One,a/1.png",
        "2,Two,b/1.png",
        "3,Missing,c/1.png",
        "4,From elsewhere,C:\\photos\\shop\\a\\2.png",
        "5,Beside the table,5.png",
        "6,Anywhere,6.png",
        "7,Several,7.png",
        "8,Without an extension,deep/8",
    )
    names = ("a/1.png", "b/1.png", "a/2.png", "5.png", "b/5.png", "b/6.png", "a/7.png", "b/7.png", "deep/8.png")
    folder = write(tmp_path / "shop", "id,title,image", *rows, images=names)
    read_many(playground, folder)
    expect_done(playground, 8)
    notes = "2 rows name an image that is missing or ambiguous"
    expect(playground["#notes"]).to_contain_text(f"{notes}: these rows fail")
    errors = [row["error"] for row in download(playground)]
    assert [bool(error) for error in errors] == [False, False, True, False, False, False, True, False]
    assert errors[2].endswith("line 4: the image is not among the files, or matches several of them: c/1.png")
    playground["#allow-missing"].check()
    expect_done(playground, 8)
    expect(playground["#notes"]).to_contain_text(f"{notes}: only the title is used")
    assert {row["error"] for row in download(playground)} == {""}
    shown = playground["tbody tr"].evaluate_all("rows => rows.map((row) => Boolean(row.querySelector('img')))")
    assert shown == [True, True, False, True, True, True, False, True]
    script = """async (files) => {
        const { listingsOf } = await import("/static/playground/files.js");
        const given = files.map(([path, text]) => ({ path, file: new File([text], path.split("/").at(-1)) }));
        const { listings } = await listingsOf(given);
        return Promise.all(listings.map(async ({ image }) => image && image.text()));
    }"""
    table = "\n".join(["id,title,image", *rows])
    given = [["shop/styles.csv", table], *([f"shop/{name}", name] for name in names)]
    found = playground.page.evaluate(script, given)
    assert found == ["a/1.png", "b/1.png", None, "a/2.png", "5.png", "b/6.png", None, "deep/8.png"]


def test_an_id_matches_an_image_only_if_it_is_the_only_one(playground: Playground, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", "id,title", "1,One", "2,Two", images=("a/1.png", "b/1.png", "a/2.png"))
    read_many(playground, folder)
    expect_done(playground, 2)
    expect(playground["#notes"]).to_contain_text("1 row has an id that matches several images")
    expect(playground["td img"]).to_have_count(1)


def test_a_table_in_the_encoding_of_an_office_program(playground: Playground, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", "id;title", "1;Coat")
    (folder / "styles.csv").write_bytes("id;title\n1;Chaussure \xe9t\xe9".encode("latin-1"))
    read_many(playground, folder / "styles.csv")
    expect(playground["#progress-text"]).to_have_text("1 of 1 listing processed.")
    expect(playground[".row-title"]).to_have_text("Chaussure \xe9t\xe9")
    expect(playground["#notes"]).to_contain_text("styles.csv: CSV with semicolons, in Windows-1252")


def test_an_image_deleted_in_the_meantime_fails_alone(playground: Playground, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", "", images=tuple(f"{number}.png" for number in range(3)))
    (folder / "styles.csv").unlink()
    playground["#tab-many"].click()
    playground.page.evaluate(
        """() => {
            const plain = FileReader.prototype.readAsDataURL;
            FileReader.prototype.readAsDataURL = function (file) {
                if (file.name === "1.png") setTimeout(() => this.onerror());
                else plain.call(this, file);
            };
        }"""
    )
    playground["#folder"].set_input_files(folder)
    expect_done(playground, 3)
    labels = download(playground)
    assert [bool(row["error"]) for row in labels] == [False, True, False]
    assert labels[1]["error"] == "unreadable: The browser could not read 1.png."


def test_a_folder_of_images(playground: Playground, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", "", images=tuple(f"{number}.png" for number in range(3)))
    (folder / "styles.csv").unlink()
    read_many(playground, folder)
    expect_done(playground, 3)
    playground["tbody .link >> nth=1"].click()
    playground.expect_answer()
    expect(playground["#image"]).to_be_visible()
    expect(playground["#code-text"]).to_contain_text("1.png")


def test_a_folder_is_dropped(playground: Playground, tmp_path: Path) -> None:
    """A real folder, as dragged from a file manager, with files in nested folders."""
    names = [f"deep/er/{number:03}.png" for number in range(120)]  # a reader returns a hundred entries at a time
    rows = ("1,Navy Shirt,deep/er/007.png", "2,Red Coat,119.png")
    folder = write(tmp_path / "shop", "id,title,image", *rows, images=tuple(names))
    devtools = playground.context.new_cdp_session(playground.page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    # As a mouse hovers: a drop before the page has answered the first move may be taken for one that is not allowed.
    for kind in ("dragEnter", "dragOver", "dragOver", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})
        if kind == "dragOver":
            expect(playground["#dropping"]).to_be_visible()
            playground.page.evaluate("() => new Promise(requestAnimationFrame)")
    expect_done(playground, 2)
    expect(playground["#notes"]).to_contain_text("118 images ignored: not used by any row")
    expect(playground[".row-title"]).to_have_text(["Navy Shirt", "Red Coat"])
    expect(playground["td img"]).to_have_count(2)


def test_dropping_several_files_opens_the_table(playground: Playground) -> None:
    transfer = playground.page.evaluate_handle(
        """() => {
            const transfer = new DataTransfer();
            for (const name of ["a.csv", "b.txt"]) transfer.items.add(new File(["id,title\\n1,Red Coat\\n"], name));
            return transfer;
        }"""
    )
    playground.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(playground["#tab-many"]).to_have_attribute("aria-selected", "true")
    expect(playground["#progress-text"]).to_have_text("1 of 1 listing processed.")


def test_filters(playground: Playground, tmp_path: Path) -> None:
    read_many(playground, numbered(tmp_path / "shop", 20))
    expect_done(playground, 20)
    labels = download(playground)
    for attribute, judged in {"": ("baseColour", "season"), "season": ("season",)}.items():
        playground["#filter-attribute"].select_option(attribute)
        for column, text in {"": "accepted", "_suggestion": "not accepted"}.items():
            rows = {row["id"]: sum(bool(row[f"{name}{column}"]) for name in judged) for row in labels}
            playground.page.get_by_role("radio", name=re.compile(rf"^{sum(rows.values())} labels? {text}$")).check()
            expect(playground["tbody .link"]).to_have_text([each for each, count in rows.items() if count])


def test_each_attribute_says_how_many_of_its_labels_are_accepted(playground: Playground, tmp_path: Path) -> None:
    read_many(playground, numbered(tmp_path / "shop", 30))
    expect_done(playground, 30)
    labels = download(playground)
    for name in ("baseColour", "season"):
        accepted = sum(bool(row[name]) for row in labels)
        expect(playground["thead"]).to_contain_text(f"{accepted} of 30 accepted")


def test_the_example_table_is_classified_with_its_images(playground: Playground) -> None:
    playground["#tab-many"].click()
    playground["#try-table"].click()
    expect_done(playground, 7)
    expect(playground["td img"]).to_have_count(7)
    expect(playground["#notes"]).to_contain_text("1 column not used: supplier")


def test_the_example_table_works_without_its_images_too(playground: Playground, tmp_path: Path) -> None:
    playground["#tab-many"].click()
    with playground.page.expect_download() as found:
        playground.page.get_by_role("link", name="Download it").click()
    found.value.save_as(tmp_path / "example.csv")
    read_many(playground, tmp_path / "example.csv")
    expect_done(playground, 7)
    assert {row["error"] for row in download(playground)} == {""}


def test_images_by_url_are_shown_once_they_are_answered(open_playground: OpenPlayground, tmp_path: Path) -> None:
    with serving(allow_private_image_hosts=True, image_ports=ANY_PORT) as site:
        playground = open_playground(site)
        url = f"{site.url}/static/examples/red-dress.jpg"
        rows = (f"1,Red Dress,{url}", "2,Elsewhere,ftp://example.com/a.jpg")
        read_many(playground, write(tmp_path / "shop", "id,title,image", *rows) / "styles.csv")
        expect_done(playground, 2)
        expect(playground["td img"]).to_have_attribute("src", url)
        assert [bool(row["error"]) for row in download(playground)] == [False, True]


def test_a_table_whose_images_are_nowhere_is_refused(playground: Playground, tmp_path: Path) -> None:
    rows = ("1,Red Coat,a.jpg", "2,Blue Coat,b.jpg")
    read_many(playground, write(tmp_path / "shop", "id,title,image", *rows) / "styles.csv")
    expect(playground["#many-problem"]).to_contain_text(
        "None of the images that the table names is among the files, such as a.jpg"
    )
    playground["#allow-missing"].check()
    expect_done(playground, 2)
    expect(playground["#many-problem"]).to_be_empty()


def test_unfamiliar_listings_are_told_apart(playground: Playground, tmp_path: Path) -> None:
    rows = ("1,Red Coat", f"2,A {UNFAMILIAR}", "3,")
    read_many(playground, write(tmp_path / "shop", "id,title", *rows) / "styles.csv")
    expect_done(playground, 3)
    playground.page.get_by_role("radio", name="1 listing unfamiliar").check()
    expect(playground["tbody .link"]).to_have_text(["2"])
    expect(playground["td .number"]).to_have_text([re.compile(", unfamiliar$")] * 2)
    labels = download(playground)
    assert [row["familiarity"] for row in labels] == ["0.5", "0.001", ""]
    assert [row["season_abstention"] for row in labels] == ["", "unfamiliar_listing", ""]
    assert labels[2]["error"]


def test_another_precision_classifies_again(playground: Playground, tmp_path: Path) -> None:
    read_many(playground, write(tmp_path / "shop", "id,title", "1,Red Coat", "2,Blue Coat") / "styles.csv")
    expect_done(playground, 2)
    playground.page.get_by_role("radio", name="99 %").check()
    expect(playground["#filters"]).to_contain_text("4 labels not accepted")
    labels = download(playground)
    assert {(row["season"], row["target_precision"]) for row in labels} == {("", "0.99")}


def test_batches_are_halved_until_they_fit(open_playground: OpenPlayground, small: Site, tmp_path: Path) -> None:
    playground = open_playground(small)
    playground.expected = REFUSED
    titles = [f"Coat {number}" for number in range(12)]
    titles[4] = "poison"
    rows = [f"{number},{title}" for number, title in enumerate(titles)]
    read_many(playground, write(tmp_path / "shop", "id,title", *rows) / "styles.csv")
    expect_done(playground, 12)
    labels = download(playground)
    assert [row["id"] for row in labels if row["error"]] == ["4"]
    assert labels[4]["error"].startswith("inference_failed: ")


def test_a_batch_that_fails_as_a_whole_does_not_stop_the_others(
    open_playground: OpenPlayground, small: Site, tmp_path: Path
) -> None:
    """The last batch holds one row on which the model fails: the service answers 500 for the whole batch."""
    playground = open_playground(small)
    playground.expected = REFUSED
    rows = [f"{number},Coat {number}" for number in range(32)]
    read_many(playground, write(tmp_path / "shop", "id,title", *rows, "last,poison") / "styles.csv")
    expect_done(playground, 33)
    labels = download(playground)
    assert [row["id"] for row in labels if row["error"]] == ["last"]
    assert labels[-1]["error"].startswith("inference_failed: ")


def test_an_overloaded_service_is_retried(open_playground: OpenPlayground, tmp_path: Path) -> None:
    """503 with Retry-After: the page waits that long, and no listing is lost or sent twice."""
    with serving(max_queue=4) as site:
        playground = open_playground(site)
        playground.expected = REFUSED
        site.predictor.free.clear()
        body = {"title": "the one inside"}
        inside = threading.Thread(target=lambda: httpx.post(f"{site.url}/v1/classify", json=body, timeout=30))
        inside.start()
        assert site.predictor.started.acquire(timeout=10)
        read_many(playground, numbered(tmp_path / "shop", 8))
        expect(playground["#progress-text"]).to_contain_text("The service is busy. Retrying in 1 s.")
        site.predictor.free.set()
        inside.join()
        expect_done(playground, 8)
        sent = [title for batch in site.predictor.batches for title in batch if title != "the one inside"]
        assert sent == [f"Coat {number}" for number in range(8)]


def test_a_listing_refused_within_a_batch_is_sent_again(playground: Playground, tmp_path: Path) -> None:
    """Some listings of a batch get a 503 in their place: the page says so, and sends only those again."""
    sent: list[list[str]] = []

    def refuse_two(route: Route) -> None:
        body: Any = route.request.post_data_json
        sent.append([listing["id"] for listing in body["listings"]])
        reply = route.fetch()
        results = reply.json()["results"]
        if len(sent) == 1:
            for at in (1, 3):
                error = problem(Overloaded("no room"), "the-id")
                results[at] = {"id": results[at]["id"], "error": error}
        route.fulfill(response=reply, json={"results": results})

    playground.page.route("**/v1/classify/batch", refuse_two)
    read_many(playground, numbered(tmp_path / "shop", 6))
    expect(playground["#progress-text"]).to_have_text(
        re.compile(r"4 of 6 listings processed\. The service is busy\. Retrying in [12] s\.")
    )
    expect_done(playground, 6)
    assert sent == [["0", "1", "2", "3", "4", "5"], ["1", "3"]]
    assert {row["error"] for row in download(playground)} == {""}


def test_stopping_and_resuming(open_playground: OpenPlayground, tmp_path: Path) -> None:
    with serving() as site:
        playground = open_playground(site)
        site.predictor.free.clear()
        read_many(playground, numbered(tmp_path / "shop", 40))
        assert site.predictor.started.acquire(timeout=10)
        playground["#stop"].click()
        expect(playground["#resume"]).to_be_visible()
        site.predictor.free.set()
        playground["#resume"].click()
        expect_done(playground, 40)


def test_a_table_without_usable_columns(playground: Playground, tmp_path: Path) -> None:
    read_many(playground, write(tmp_path / "shop", "colour,size", "red,4") / "styles.csv")
    expect(playground["#many-problem"]).to_contain_text("no column named title or image; it has colour, size.")
