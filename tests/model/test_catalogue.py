"""A catalogue's rows: repaired, counted, split; its images: in place, whoever reads them."""

from __future__ import annotations

import csv
import json
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.catalogue.config import CatalogueConfig
from model.catalogue.image_store import open_images
from model.catalogue.listings import BadRow, Catalogue, Listing, ReadReport, iter_listings
from model.catalogue.splits import SHARES, Part, part_of
from model.catalogue.words import Placeholders
from model.errors import CatalogueError, ConfigError

HEADER = "id,colour,kind,title"


def write_catalogue(folder: Path, table: str | bytes, /, *, name: str = "table.csv", **keys: Any) -> Path:
    """Write a table and the TOML file that describes it; `None` takes a key away."""
    data = table if isinstance(table, bytes) else table.encode()
    (folder / name).write_bytes(data)
    values: dict[str, object] = {
        "table": name,
        "id": "id",
        "title": "title",
        "attributes": ["colour", "kind"],
        "min_label_count": 1,
        **keys,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    toml = folder / "catalogue.toml"
    toml.write_text("\n".join(["[catalogue]", *lines]))
    return toml


def write_images(folder: Path, names: dict[str, bytes]) -> None:
    for name, data in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def stream(toml: Path) -> tuple[list[Listing | BadRow], ReadReport]:
    config = CatalogueConfig.load(toml).without_labels()
    report = ReadReport(config.table.name)
    return list(iter_listings(config, open_images(config.images), report)), report


def titles(toml: Path) -> dict[str, str | None]:
    return {listing.id: listing.title for listing in Catalogue.open(toml).listings}


# --- CSV ---------------------------------------------------------------------------------------------------


def test_reads_labels_and_counts_missing_ones(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, f"{HEADER}\n1,Red,Shirt, A red shirt \n2,,Shirt,Plain\n")
    catalogue = Catalogue.open(toml)
    assert [(x.id, x.title, dict(x.labels)) for x in catalogue.listings] == [
        ("1", "A red shirt", {"colour": "Red", "kind": "Shirt"}),
        ("2", "Plain", {"kind": "Shirt"}),
    ]
    assert catalogue.report.unlabelled == {"colour": 1}
    assert "without label: colour 1" in str(catalogue.report)


def test_unquoted_commas_in_the_last_column_are_repaired(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, f"{HEADER}\n1,Red,Set,Tie, Cufflink, Square\n2,Red,Set,Liv,Laugh\n")
    catalogue = Catalogue.open(toml)
    assert [x.title for x in catalogue.listings] == ["Tie, Cufflink, Square", "Liv,Laugh"]
    assert catalogue.report.repaired == 2
    assert "repaired: 2 (line 2, 3)" in str(catalogue.report)


def test_surplus_fields_elsewhere_and_short_rows_are_left_out(tmp_path: Path) -> None:
    table = "id,title,colour,kind\n1,Tie, Set,Red,Set\n2,Tie\n3,Tie,Red,Set\n"
    report = Catalogue.open(write_catalogue(tmp_path, table)).report
    assert report.left_out == {"too many fields": 1, "too few fields": 1}
    assert report.repaired == 0
    assert "too many fields: 1 (line 2)" in str(report)
    assert "too few fields: 1 (line 3)" in str(report)


@pytest.mark.parametrize(
    ("cell", "title"),
    [
        ('"Tie, red"', "Tie, red"),
        ('"Two\r\nlines"', "Two\r\nlines"),
        ('"A 5"" nail"', 'A 5" nail'),
        ('Tempo 3.5" Short', 'Tempo 3.5" Short'),
        ('"Quoted" start', "Quoted start"),
    ],
)
def test_quotes(tmp_path: Path, cell: str, title: str) -> None:
    toml = write_catalogue(tmp_path, f"{HEADER}\n1,Red,Set,{cell}\n2,Red,Set,Next\n")
    assert titles(toml) == {"1": title, "2": "Next"}


def test_a_quote_that_never_closes_spoils_one_row_only(tmp_path: Path) -> None:
    rows = [f"{n},Red,Set,Title {n}" for n in range(300)]
    rows[3] = '3,Red,Set,"Title 3'
    rows[40] = '40,Red,Set,"Title 40'
    catalogue = Catalogue.open(write_catalogue(tmp_path, "\n".join([HEADER, *rows, ""])))
    assert [x.id for x in catalogue.listings] == [str(n) for n in range(300)]
    assert catalogue.listings[3].title == '"Title 3'
    assert catalogue.report.repaired == 2
    assert catalogue.report.repaired_lines == [5, 42]


def test_line_numbers_count_lines_not_records(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, f'{HEADER}\n1,Red,Set,"a\nb"\n \n,Red,Set,No id\n,,,\n')
    report = Catalogue.open(toml).report
    assert report.rows == 3
    assert report.left_out_lines == {"empty id": [5, 6]}


def test_byte_order_mark_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    table = b"\xef\xbb\xbf" + f"{HEADER}\n1,Red,Set,Café\n2,Red,Set,Caf".encode() + b"\xe9\n"
    catalogue = Catalogue.open(write_catalogue(tmp_path, table))
    assert [x.title for x in catalogue.listings] == ["Café"]
    assert catalogue.report.left_out == {"column 'title' is not valid UTF-8": 1}


def test_duplicate_and_empty_ids_and_empty_listings_are_left_out(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, f"{HEADER}\n1,Red,Set,First\n1,Blue,Set,Second\n ,Red,Set,Third\n2,Red,Set,\n")
    catalogue = Catalogue.open(toml)
    assert [x.title for x in catalogue.listings] == ["First"]
    assert catalogue.report.left_out == {"duplicate id": 1, "empty id": 1, "neither title nor image": 1}
    assert catalogue.report.rows == 4


def test_streaming_gives_an_item_for_each_row_in_order(tmp_path: Path) -> None:
    table = "id,title\n1,First\n2,\n,Third\n1,Again\n4\n"
    items, report = stream(write_catalogue(tmp_path, table))  # no attribute columns: they are what is wanted
    assert [(type(item), item.id) for item in items] == [
        (Listing, "1"),
        (BadRow, "2"),
        (BadRow, ""),
        (Listing, "1"),
        (BadRow, "4"),
    ]
    assert [item.reason for item in items if isinstance(item, BadRow)] == [
        "neither title nor image",
        "empty id",
        "too few fields",
    ]
    assert (report.rows, report.listings, report.left_out.total()) == (5, 2, 3)


weird_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(weird_text, weird_text), min_size=1, max_size=8))
def test_whatever_the_csv_writer_wrote_is_read(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        writer.writerows([f"id{n}", colour, "Shirt", title] for n, (colour, title) in enumerate(rows))
    items, report = stream(write_catalogue(tmp_path, path.read_bytes()))
    assert report.repaired == 0
    says = Placeholders().is_title
    expected = [title.strip() if says(title, f"id{n}") else "" for n, (_, title) in enumerate(rows)]
    assert [item.title if isinstance(item, Listing) else "" for item in items] == expected


# --- JSON Lines and Parquet --------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"id": 7, "title": "One", "colour": "Red", "kind": null}',
        "",
        '{"id": "8", "colour": 3.0, "title": "Two"}',
        "{torn",
        '["9"]',
        '{"id": "10", "title": ["a", "b"]}',
        '{"id": "11", "title": "\\ud800"}',
        '{"id": "12", "title": "Last", "kind": true}',
    ]
    catalogue = Catalogue.open(write_catalogue(tmp_path, "\n".join(lines), name="table.jsonl"))
    assert [(x.id, dict(x.labels)) for x in catalogue.listings] == [
        ("7", {"colour": "Red"}),
        ("8", {"colour": "3"}),
        ("12", {"kind": "true"}),
    ]
    assert catalogue.report.left_out_lines == {
        "not a JSON object": [4, 5],
        "column 'title' holds a list": [6],
        "column 'title' is not valid UTF-8": [7],
    }


def test_parquet_with_dictionaries_gaps_and_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1, 2, None], pa.int64()),
            "title": ["One", None, "Three"],
            "colour": pa.array(["Red", "Blue", "Red"]).dictionary_encode(),
            "kind": pa.array([2011.0, float("nan"), 2012.5]),
            "unused": pa.array([[1], [2], [3]]),
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    data = (tmp_path / "table.parquet").read_bytes()
    catalogue = Catalogue.open(write_catalogue(tmp_path, data, name="table.parquet"))
    assert [(x.id, dict(x.labels)) for x in catalogue.listings] == [("1", {"colour": "Red", "kind": "2011"})]
    assert catalogue.report.left_out == {"neither title nor image": 1, "empty id": 1}


# --- images ------------------------------------------------------------------------------------------------

IMAGES = {"images/1.jpg": b"one" * 1000, "images/3.jpg": b"three"}


def zip_images(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)


@pytest.fixture(params=["folder", "stored", "deflated"])
def pictured(request: pytest.FixtureRequest, tmp_path: Path) -> Catalogue:
    if request.param == "folder":
        write_images(tmp_path / "photos", IMAGES)
        images = "photos"
    else:
        images = "photos.zip"
        zip_images(tmp_path / images, zipfile.ZIP_DEFLATED if request.param == "deflated" else zipfile.ZIP_STORED)
    table = f"{HEADER}\n1,Red,Set,First\n2,Red,Set,Second\n3,Red,Set,\n"
    return Catalogue.open(write_catalogue(tmp_path, table, images=images, image="images/{id}.jpg"))


def test_images_are_found_and_missing_ones_counted(pictured: Catalogue) -> None:
    assert [x.image for x in pictured.listings] == ["images/1.jpg", None, "images/3.jpg"]
    assert pictured.image_bytes("images/1.jpg") == IMAGES["images/1.jpg"]
    assert (pictured.report.without_image, pictured.report.without_title) == (1, 1)
    with pytest.raises(CatalogueError, match=r"images/2\.jpg"):
        pictured.image_bytes("images/2.jpg")


def test_threads_forks_and_pickles_read_the_same_bytes(pictured: Catalogue) -> None:
    names = ["images/1.jpg", "images/3.jpg"] * 50
    expected = [IMAGES[name] for name in names]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(pictured.image_bytes, names)) == expected
    with multiprocessing.get_context("forkserver").Pool(2) as processes:  # the catalogue goes there as a pickle
        assert processes.map(pictured.image_bytes, names[:10]) == expected[:10]
    assert pickle.loads(pickle.dumps(pictured)) == pictured  # noqa: S301  # our own bytes


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    zip_images(tmp_path / "photos.zip", zipfile.ZIP_STORED)
    data = (tmp_path / "photos.zip").read_bytes().replace(b"three", b"thrEE")
    (tmp_path / "photos.zip").write_bytes(data)
    toml = write_catalogue(tmp_path, f"{HEADER}\n3,R,S,T\n", images="photos.zip", image="images/{id}.jpg")
    with pytest.raises(CatalogueError, match=r"images/3\.jpg.*checksum"):
        Catalogue.open(toml).image_bytes("images/3.jpg")


def test_the_template_may_name_any_column(tmp_path: Path) -> None:
    write_images(tmp_path, {"photos/Red/a{b.jpg": b"x"})
    table = "id,colour,kind,title,file\n1,Red,S,T,a\n2,Red,S,T,\n"
    toml = write_catalogue(tmp_path, table, images="photos", image="{colour}/{file}{{b.jpg")
    assert [x.image for x in Catalogue.open(toml).listings] == ["Red/a{b.jpg", None]


@pytest.mark.parametrize("file", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "a\0b"])
def test_an_image_path_may_not_leave_the_folder(tmp_path: Path, file: str) -> None:
    write_images(tmp_path, {"secret.jpg": b"x", "photos/a.jpg": b"x"})
    table = f"id,colour,kind,file,title\n1,Red,S,{file},T\n2,Red,S,a.jpg,T\n"
    toml = write_catalogue(tmp_path, table, images="photos", image="{file}")
    catalogue = Catalogue.open(toml)
    assert [x.id for x in catalogue.listings] == ["2"]
    assert catalogue.report.left_out == {"image path leaves the folder": 1}


# --- the split ---------------------------------------------------------------------------------------------


def test_the_split_is_the_same_for_ever() -> None:
    assert [part_of(key).value for key in ("15970", "39386", "a", "", "Ärmel")] == [
        "train",
        "train",
        "validation",
        "calibration",
        "train",
    ]


def test_the_shares_are_kept() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)
    counts = dict.fromkeys(Part, 0)
    for n in range(20_000):
        counts[part_of(str(n))] += 1
    for part, share in SHARES.items():
        assert counts[part] / 20_000 == pytest.approx(share, abs=0.01)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text("abcXYZ019'&-", min_size=1, max_size=6), min_size=1, max_size=5), data=st.data())
def test_rows_of_a_group_stay_together_whatever_case_and_spaces(
    tmp_path: Path, words: list[str], data: st.DataObject
) -> None:
    space = st.sampled_from([" ", "  ", "\t", "\u00a0"])
    case = st.sampled_from([str.upper, str.lower, str.title])
    words = ["word", *words]  # what is neither a placeholder nor without letters
    variants = [data.draw(space) + data.draw(case)(data.draw(space).join(words)) + data.draw(space) for _ in range(6)]
    table = HEADER + "".join(f"\n{n},Red,Set,{variant}" for n, variant in enumerate(variants))
    listings = Catalogue.open(write_catalogue(tmp_path, table, group="title")).listings
    assert len(listings) == 6
    assert len({listing.part for listing in listings}) == 1


def test_a_group_of_columns_and_an_empty_group_value(tmp_path: Path) -> None:
    table = HEADER + "".join(f"\n{n},Red,{'' if n < 200 else n % 100},Tie" for n in range(400))
    listings = Catalogue.open(write_catalogue(tmp_path, table, group=["title", "kind"])).listings
    assert [x.part for x in listings[:200]] == [part_of(x.id) for x in listings[:200]]
    assert [x.part for x in listings[200:300]] == [x.part for x in listings[300:]]
    assert len({x.part for x in listings[200:]}) > 1


def test_parts_are_disjoint_and_complete(tmp_path: Path) -> None:
    table = HEADER + "".join(f"\n{n},Red,Set,T" for n in range(200))
    catalogue = Catalogue.open(write_catalogue(tmp_path, table))
    ids = [x.id for part in Part for x in catalogue.part(part)]
    assert sorted(ids) == sorted(x.id for x in catalogue.listings)


# --- mistakes ----------------------------------------------------------------------------------------------

GOOD = f"{HEADER}\n1,Red,Set,T\n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"colour": "x"}, "unknown key 'colour'"),
        ({"id": None}, "'id' is missing"),
        ({"table": 3}, "'table' must be"),
        ({"attributes": "colour"}, "'attributes' must be a list"),
        ({"attributes": ["kind", "kind"]}, "twice"),
        ({"min_label_count": 0}, "min_label_count"),
        ({"images": "photos"}, "belong together"),
        ({"title": None}, "needs 'title'"),
        ({"images": "p", "image": "all.jpg"}, "names no column"),
        ({"images": "p", "image": "{id.__class__!r}"}, "plain"),
        ({"images": "p", "image": "{id"}, "not a valid template"),
        ({"table": "table.xls"}, r"must end in \.csv"),
    ],
)
def test_mistakes_in_the_toml_file(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Catalogue.open(write_catalogue(tmp_path, GOOD, **keys))
    assert "catalogue.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attributes": ["size"]}, "no column 'size'; it has 'id', 'colour', 'kind', 'title'"),
        ({"group": "size"}, "no column 'size'"),
        ({"images": ".", "image": "{size}.jpg"}, "no column 'size'"),
        ({"images": "nowhere", "image": "{id}.jpg"}, "nowhere: no such folder or zip"),
        ({"images": "table.csv", "image": "{id}.jpg"}, "not a readable zip"),
        ({"table": "nowhere.csv"}, r"cannot read .*nowhere\.csv: No such file"),
        ({"table": "nowhere.parquet"}, r"nowhere\.parquet"),
    ],
)
def test_unusable_tables_and_images(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=message) as caught:
        Catalogue.open(write_catalogue(tmp_path, GOOD, **keys))
    assert "\n" not in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Catalogue.open(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("[catalogue")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Catalogue.open(tmp_path / "broken.toml")
    with pytest.raises(CatalogueError, match="not a readable Parquet"):
        Catalogue.open(write_catalogue(tmp_path, GOOD, name="table.parquet"))
    with pytest.raises(CatalogueError, match="two columns called 'id'"):
        Catalogue.open(write_catalogue(tmp_path, "id,id,colour,kind,title\n"))
    with pytest.raises(CatalogueError, match="no usable listing"):
        Catalogue.open(write_catalogue(tmp_path, f"{HEADER}\n"))


# --- what people write for a missing value, and one label in several spellings -----------------------------


def test_placeholders_are_neither_titles_nor_labels_nor_images(tmp_path: Path) -> None:
    write_images(tmp_path, {"photos/1.jpg": b"x"})
    table = "id,colour,kind,title,image\n1,nan,Shirt,N/A,1.jpg\n2,Red,None,2,1.jpg\n3,-,Shirt,A shirt,nan\n"
    toml = write_catalogue(tmp_path, table, images="photos", image="{image}")
    catalogue = Catalogue.open(toml)
    assert [(x.title, x.image, dict(x.labels)) for x in catalogue.listings] == [
        (None, "1.jpg", {"kind": "Shirt"}),
        (None, "1.jpg", {"colour": "Red"}),
        ("A shirt", None, {"kind": "Shirt"}),
    ]
    report = str(catalogue.report)
    assert "titles that say nothing, taken as missing: 2, such as 'N/A' (line 2, 3)" in report
    assert "placeholders of colour, taken as missing: 2, such as nan (line 2, 4)" in report


def test_placeholders_can_be_added_and_switched_off(tmp_path: Path) -> None:
    table = f"{HEADER}\n1,k. A.,None,A shirt\n2,Red,Shirt,A shirt\n"
    more = Catalogue.open(write_catalogue(tmp_path, table, placeholders=["k.A.", "K. A."]))
    assert dict(more.listings[0].labels) == {}
    none = Catalogue.open(write_catalogue(tmp_path, table, placeholders=[]))
    assert dict(none.listings[0].labels) == {"colour": "k. A.", "kind": "None"}


def test_spellings_of_a_label_are_joined_and_told(tmp_path: Path) -> None:
    spelt = ["Jet Black", "Jet  Black", "jet black", "JET\u00a0BLACK", "Red", "red", "Red "]
    table = HEADER + "".join(f"\n{n},{each},True,Shirt {n}" for n, each in enumerate(spelt))
    catalogue = Catalogue.open(write_catalogue(tmp_path, table))
    assert [x.labels["colour"] for x in catalogue.listings] == ["Jet Black"] * 4 + ["Red"] * 3
    assert {x.labels["kind"] for x in catalogue.listings} == {"true"}
    assert "spellings of colour joined: 3 ('JET BLACK' is 'Jet Black', " in str(catalogue.report)


def test_a_parquet_table_and_its_csv_give_the_same_labels(tmp_path: Path) -> None:
    rows = {"id": [1, 2], "title": ["One", "Two"], "colour": [True, False], "kind": [2011.0, 7.5]}
    pq.write_table(pa.table(rows), tmp_path / "table.parquet")
    parquet = Catalogue.open(write_catalogue(tmp_path, (tmp_path / "table.parquet").read_bytes(), name="table.parquet"))
    csv_table = "id,title,colour,kind\n1,One,True,2011.0\n2,Two,FALSE,7.50\n"
    assert parquet.listings == Catalogue.open(write_catalogue(tmp_path, csv_table)).listings


def test_a_list_of_labels_is_not_a_label(tmp_path: Path) -> None:
    table = f"{HEADER}\n1,\"['Red', 'White']\",\"['Shirt']\",A shirt\n"
    catalogue = Catalogue.open(write_catalogue(tmp_path, table))
    assert dict(catalogue.listings[0].labels) == {"kind": "Shirt"}
    assert "several labels of colour, taken as missing: 1, such as ['Red', 'White'] (line 2)" in str(catalogue.report)


# --- images that are named and not there -------------------------------------------------------------------


def test_an_image_that_a_column_names_and_that_is_not_there_leaves_its_row_out(tmp_path: Path) -> None:
    write_images(tmp_path, {"photos/a.jpg": b"x"})
    table = "id,colour,kind,title,file\n1,Red,S,T,a.jpg\n2,Red,S,T,b.jpg\n3,Red,S,T,https://example.com/c.jpg\n"
    catalogue = Catalogue.open(write_catalogue(tmp_path, table, images="photos", image="{file}"))
    assert [x.id for x in catalogue.listings] == ["1"]
    assert "no such image: 1, such as b.jpg (line 3)" in str(catalogue.report)
    assert "a URL, which is not fetched here: 1, such as https://example.com/c.jpg (line 4)" in str(catalogue.report)


def test_an_image_named_by_the_id_alone_may_be_missing_and_is_told(tmp_path: Path) -> None:
    write_images(tmp_path, {"photos/1.jpg": b"x"})
    table = f"{HEADER}\n1,Red,S,T\n2,Red,S,T\n"
    catalogue = Catalogue.open(write_catalogue(tmp_path, table, images="photos", image="{id}.jpg"))
    assert [x.image for x in catalogue.listings] == ["1.jpg", None]
    assert "no such image: 1, such as 2.jpg (line 3)" in str(catalogue.report)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("pics/{id}.png", r"none of the 2 images that .*csv names is in .*photos; the first path tried is pics/1\.p"),
        ("{file}", r"none of the 2 images is there: they are URLs, such as https://example\.com/1\.jpg"),
    ],
)
def test_where_no_image_is_found_nothing_is_trained(tmp_path: Path, template: str, message: str) -> None:
    write_images(tmp_path, {"photos/1.jpg": b"x"})
    table = "id,colour,kind,title,file\n" + "".join(f"{n},Red,S,T,https://example.com/{n}.jpg\n" for n in (1, 2))
    with pytest.raises(CatalogueError, match=message):
        Catalogue.open(write_catalogue(tmp_path, table, images="photos", image=template))


def test_images_inside_a_parquet_table(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": b"\xff\xd8\xff one", "path": "a.jpg"}, {"bytes": b"\xff\xd8\xff two", "path": "a.jpg"}]
    rows = {"id": [1, 2], "title": ["A", "B"], "colour": ["Red"] * 2, "kind": ["S"] * 2}
    pq.write_table(pa.table({**rows, "image": pa.array(cells, kind)}), tmp_path / "table.parquet")
    data = (tmp_path / "table.parquet").read_bytes()
    catalogue = Catalogue.open(write_catalogue(tmp_path, data, name="table.parquet", image="{image}"))
    assert [catalogue.image_bytes(str(x.image))[4:] for x in catalogue.listings] == [b"one", b"two"]
    copy = pickle.loads(pickle.dumps(catalogue))  # noqa: S301 - our own bytes
    assert copy.image_bytes(str(copy.listings[1].image))[4:] == b"two"
    assert catalogue.report.without_image == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"delimiter": ";;"}, "'delimiter' must be one character"),
        ({"encoding": "utf-9"}, "'encoding' names none that Python knows: 'utf-9'"),
        ({"placeholders": "nan"}, "'placeholders' must be a list"),
    ],
)
def test_mistakes_in_how_a_table_is_read(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Catalogue.open(write_catalogue(tmp_path, GOOD, **keys))


def test_a_separator_belongs_to_an_attribute_or_a_column_of_the_template(tmp_path: Path) -> None:
    write_images(tmp_path, {"photos/b.jpg": b"x"})
    toml = write_catalogue(
        tmp_path, "id,title,colour,kind,file\n1,T,R,S,a.jpg#b.jpg\n", images="photos", image="{file}"
    )
    text = toml.read_text()
    toml.write_text(text + '\nseparator = {file = "#"}\n')
    assert [x.image for x in Catalogue.open(toml).listings] == ["b.jpg"]
    toml.write_text(text + '\nseparator = {size = "#"}\n')
    with pytest.raises(ConfigError, match="'separator' names 'size', which is neither an attribute nor a column"):
        Catalogue.open(toml)


# --- several labels, product types, names ------------------------------------------------------------------


def test_a_cell_of_a_multi_valued_attribute_is_split(tmp_path: Path) -> None:
    rows = (
        'id,title,colour,kind\n1,T,Red | blue,"Tops, Men"\n2,T,BLUE|Red|blue,Tops\n'
        "3,T,\"['Red', 'Green|blue']\",Tops\n4,T,N/A|Red,Tops\n5,T,-|n/a,Tops\n6,T,,Tops\n7,T,blue,Tops\n8,T,|,Tops\n"
    )
    toml = write_catalogue(tmp_path, rows)
    toml.write_text(toml.read_text() + '\nseparator = {colour = "|"}\n')
    catalogue = Catalogue.open(toml)
    assert {each.id: each.label_sets.get("colour") for each in catalogue.listings} == {
        "1": ("Red", "blue"),
        "2": ("blue", "Red"),  # spellings joined, each label once
        "3": ("Red", "Green", "blue"),
        "4": ("Red",),
        "5": None,
        "6": None,
        "7": ("blue",),
        "8": None,
    }
    assert all("colour" not in each.labels and each.labels["kind"] for each in catalogue.listings)
    assert catalogue.report.unlabelled == {"colour": 3}
    assert catalogue.listings[0].every_label == ("Tops, Men", "Red", "blue")
    assert "placeholders of colour, taken as missing: 1" in str(catalogue.report)


def test_a_catalogue_with_label_sets_can_be_labelled(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, GOOD)
    keys = 'separator = {colour = "|"}\nproduct_type = "kind"\n[labels.colour]\n"Red" = {de = "Rot"}\n'
    toml.write_text(f"{toml.read_text()}\n{keys}")
    config = CatalogueConfig.load(toml)
    assert config.label_names == {"colour": {"Red": {"de": "Rot"}}}
    plain = config.without_labels()
    assert (plain.separator, plain.product_type, plain.label_names) == ({}, None, {})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('product_type = "size"', "'product_type' names 'size', which is no attribute"),
        ('product_type = "kind"\nseparator = {kind = "|"}', "which may have several labels"),
        ('[labels.size]\n"S" = {de = "klein"}', r"\[labels\] names 'size', which is no attribute"),
        ('[labels.colour]\n"Red" = "Rot"', r"\[labels.colour\] must give 'Red' texts by language"),
        ('[labels.colour]\n"Red" = {de = ""}', r"\[labels.colour\] must give 'Red' texts by language"),
        ("[labels]\ncolour = 3", "must hold a table for each attribute"),
    ],
)
def test_mistakes_in_what_an_attribute_means(tmp_path: Path, keys: str, message: str) -> None:
    toml = write_catalogue(tmp_path, GOOD)
    toml.write_text(f"{toml.read_text()}\n{keys}\n")
    with pytest.raises(ConfigError, match=message):
        Catalogue.open(toml)


def test_where_data_can_be_had_is_said_where_it_is_not_there(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, "id,title\n1,Red\n", source="Ask the shop for it.")
    assert CatalogueConfig.load(toml).source == "Ask the shop for it."
    (tmp_path / "table.csv").unlink()
    with pytest.raises(ConfigError, match=r"table\.csv is not there\. Ask the shop for it\.$"):
        CatalogueConfig.load(toml)


def test_the_benchmarks_say_where_their_data_can_be_had(tmp_path: Path) -> None:
    toml = tmp_path / "benchmarks" / "fashion.toml"
    toml.parent.mkdir()
    toml.write_bytes((Path(__file__).parents[2] / "benchmarks" / "fashion.toml").read_bytes())
    with pytest.raises(ConfigError, match=r"styles\.csv is not there\. It is not part of the project: download"):
        CatalogueConfig.load(toml)
