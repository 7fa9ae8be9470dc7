"""A check of a catalogue says what training would do with it, and what to mend."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import pytest

from model.catalogue import check as checking
from model.catalogue.check import CatalogueCheck, Evidence, Finding, Severity, check_catalogue, check_listings
from model.catalogue.listings import Catalogue
from model.catalogue.splits import Part, part_of
from model.errors import CatalogueError
from model.situations import Situation

Write = Callable[..., Path]


def ids_of(part: Part, count: int, start: int = 1) -> list[str]:
    return list(islice((str(number) for number in itertools.count(start) if part_of(str(number)) is part), count))


def rows(count: int, colours: tuple[str, ...] = ("Red", "Blue"), start: int = 0) -> str:
    return "".join(f"{n},Shirt number {n},{colours[n % len(colours)]}\n" for n in range(start, start + count))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def catalogue(table: str, extra: str = "", *, labels: str = 'attributes = ["colour"]\n') -> Path:
        (tmp_path / "table.csv").write_text(table, encoding="utf-8")
        toml = tmp_path / "shop.toml"
        toml.write_text(f'[catalogue]\ntable = "table.csv"\nid = "id"\ntitle = "title"\n{labels}{extra}')
        return toml

    return catalogue


def said(check: CatalogueCheck, severity: Severity) -> list[str]:
    return [each.text for each in check.findings if each.severity is severity]


HEAD = "id,title,colour\n"


def test_a_sound_catalogue_has_nothing_to_mend(write: Write) -> None:
    check = check_catalogue(write(HEAD + rows(7000)))
    assert check.findings == ()
    assert (check.report.rows, check.report.listings) == (7000, 7000)
    assert sum(check.parts.values()) == 7000
    (colour,) = check.attributes
    assert (colour.labelled, colour.labels, colour.learned) == (7000, {"Red": 3500, "Blue": 3500}, ("Blue", "Red"))
    evidence = colour.evidence[Situation.TITLE]
    assert evidence == Evidence(rows=check.parts[Part.CALIBRATION], independent=check.parts[Part.CALIBRATION])
    assert colour.evidence[Situation.IMAGE] == Evidence()
    assert evidence.certifiable(check.needed) == 0.99


def test_it_says_what_training_reads(write: Write) -> None:
    toml = write(
        HEAD + rows(300) + '300,Shirt,"a\n,broken\n5,An id again,Red\n,No id,Red\n301,nan,Red\n302,Shirt,RED\n'
    )
    read = Catalogue.open(toml)
    check, again = check_catalogue(toml), check_listings(read)
    assert str(check.report) == str(read.report)
    for facts in (check, again):
        assert facts.parts == {part: len(read.part(part)) for part in Part}
        (colour,) = facts.attributes
        assert colour.labels == {"Red": 151, "Blue": 150}
        assert colour.spellings == {"RED": "Red"}
    assert check.findings == again.findings


def test_rows_that_are_left_out_are_named_with_their_reasons(write: Write) -> None:
    check = check_catalogue(write(HEAD + rows(500) + "3,An id again,Red\nshort\n"))
    (text,) = [each for each in said(check, Severity.WARNING) if "left out" in each]
    assert text == "2 of 502 rows are left out: duplicate id (1), too few fields (1)"
    assert check.report.left_out_lines == {"duplicate id": [502], "too few fields": [503]}


@pytest.mark.parametrize(
    ("count", "best", "needed"),
    [(56, None, "57 for 0.9, 117 for 0.95, 597 for 0.99"), (57, 0.9, "117 for 0.95"), (117, 0.95, "597 for 0.99")],
)
def test_attributes_that_cannot_be_certified(write: Write, count: int, best: float | None, needed: str) -> None:
    calibration = "".join(f"{name},Shirt {name},Red\n" for name in ids_of(Part.CALIBRATION, count))
    others = [name for part in (Part.TRAIN, Part.VALIDATION) for name in ids_of(part, 50)]
    colours = "".join(f"{name},Shoe {name},{'Red' if n % 2 else 'Blue'}\n" for n, name in enumerate(others))
    check = check_catalogue(write(HEAD + calibration + colours))
    assert check.attributes[0].evidence[Situation.TITLE].certifiable(check.needed) == best
    texts = said(check, Severity.NOTE if best else Severity.WARNING)
    assert any(f"has {count} labelled listings; needed" in text and needed in text for text in texts)


def test_a_title_that_repeats_is_one_piece_of_evidence(write: Write) -> None:
    names = ids_of(Part.CALIBRATION, 120)
    table = HEAD + rows(300) + "".join(f"{name},The same,Red\n" for name in names if int(name) >= 300)
    evidence = check_catalogue(write(table)).attributes[0].evidence[Situation.TITLE]
    repeated = sum(int(name) >= 300 for name in names)
    single = evidence.rows - repeated
    assert evidence.independent == pytest.approx(evidence.rows**2 / (single + repeated**2))


def test_titles_in_two_parts_and_how_to_keep_them_together(write: Write) -> None:
    train, test = ids_of(Part.TRAIN, 1)[0], ids_of(Part.TEST, 1)[0]
    table = HEAD + rows(400, start=10_000) + f"{train},Same Shirt,Red\n{test},same  shirt,Red\n"
    (finding,) = [each for each in check_catalogue(write(table)).warnings if "another part" in each.text]
    assert finding.text.startswith(
        "2 listings have the same title as a listing in another part (1 titles), such as 'Same"
    )
    assert 'group = "title"' in finding.advice
    grouped = check_catalogue(write(table, 'group = "title"\n'))
    assert grouped.titles.apart == 0
    assert not [each for each in grouped.warnings if "another part" in each.text]


def zipped(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_images_in_two_parts_and_one_that_stands_for_none(write: Write, tmp_path: Path, form: str) -> None:
    files = {f"{n}.jpg": b"none yet" if n < 60 else b"image %d" % n for n in range(400)}
    if form == "zip":
        zipped(tmp_path / "images.zip", files)
    else:
        (tmp_path / "images").mkdir()
        for name, data in files.items():
            (tmp_path / "images" / name).write_bytes(data)
    where = "images.zip" if form == "zip" else "images"
    check = check_catalogue(write(HEAD + rows(400), f'images = "{where}"\nimage = "{{id}}.jpg"\n'))
    assert (check.images.keys, check.images.apart, check.images.most) == (341, 1, 60)
    assert check.images_compared == 400
    texts = said(check, Severity.WARNING)
    assert any("one image is on 60 listings: 0.jpg" in text for text in texts)
    assert any("60 listings have the same image as a listing in another part" in text for text in texts)


def test_of_files_only_some_are_read(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "IMAGES_READ", 3)
    (tmp_path / "images").mkdir()
    for n in range(9):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(b"x")
    toml = write(HEAD + rows(9), 'images = "images"\nimage = "{id}.jpg"\n')
    assert check_catalogue(toml).images_compared == 3


def test_images_that_are_not_there(write: Write, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"x")
    toml = write(HEAD + rows(400), 'images = "images"\nimage = "{id}.jpg"\n')
    check = check_catalogue(toml)
    assert any("not one of the 400 images is in" in text and "0.jpg" in text for text in said(check, Severity.ERROR))
    with pytest.raises(CatalogueError, match="none of the 400 images"):
        Catalogue.open(toml)
    for n in range(390):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(b"%d" % n)
    check = check_catalogue(toml)
    assert check.report.images.missing == [f"39{n}.jpg" for n in range(5)]
    assert not check.errors
    assert not any("not found" in text for text in said(check, Severity.WARNING))
    (tmp_path / "images" / "0.jpg").unlink()
    for n in range(100, 120):
        (tmp_path / "images" / f"{n}.jpg").unlink()
    assert any("31 of the 400 images" in text for text in said(check_catalogue(toml), Severity.WARNING))


def test_an_image_inside_the_table_is_not_kept(write: Write) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    table = "id,title,colour,photo\n" + "".join(f'{n},T {n},Red,"{url}"\n' for n in range(40))
    check = check_catalogue(write(table, 'image = "{photo}"\n'))
    assert (check.report.without_image, check.report.images.found, check.images.keys) == (0, 40, 1)


# --- what training refuses ---------------------------------------------------------------------------------


def test_too_few_labels_is_what_training_refuses(write: Write) -> None:
    check = check_catalogue(write(HEAD + rows(300, ("Red",)) + "900,Shirt,Blue\n"))
    (text,) = said(check, Severity.ERROR)
    assert text == "colour has 1 labels with at least 20 training listings; two are needed"


def test_too_few_listings_is_what_training_refuses(write: Write) -> None:
    train = ids_of(Part.TRAIN, 60)
    table = HEAD + "".join(f"{name},Shirt,{'Red' if n % 2 else 'Blue'}\n" for n, name in enumerate(train))
    assert said(check_catalogue(write(table)), Severity.ERROR) == [
        "the validation part holds no labelled listing: there are too few listings, or groups"
    ]


def test_a_table_without_a_usable_row(write: Write) -> None:
    texts = said(check_catalogue(write(HEAD + ",,\n")), Severity.ERROR)
    assert "the table holds no usable listing" in texts


def test_without_attributes_it_can_only_be_labelled(write: Write) -> None:
    check = check_catalogue(write("id,title\n1,Shirt\n", labels=""))
    assert not check.errors
    assert said(check, Severity.WARNING) == [
        "the catalogue names no attributes: it can be labelled, and not trained on"
    ]


def test_a_column_of_texts_is_no_attribute(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MAX_LABELS", 10)
    table = HEAD + "".join(f"{n},Shirt,Text {n}\n" for n in range(40))
    check = check_catalogue(write(table))
    assert check.attributes[0].too_many
    assert len(check.attributes[0].labels) == 10
    assert any("more than 10 different values" in text for text in said(check, Severity.WARNING))


def test_rare_labels_and_placeholders_are_notes(write: Write) -> None:
    check = check_catalogue(write(HEAD + rows(7000) + "9001,Shirt 9001,Mauve\n9002,n/a,Red\n9003,Shirt 9003,N/A\n"))
    notes = said(check, Severity.NOTE)
    assert any("fewer than 20 training listings: Mauve" in text for text in notes)
    assert any(text.startswith("titles that say nothing, taken as missing: 1") for text in notes)
    assert any(text.startswith("placeholders of colour, taken as missing: 1") for text in notes)


def test_errors_come_first(write: Write) -> None:
    check = check_catalogue(write(HEAD + rows(30, ("Red",)) + "1,Again,Red\n"))
    order = list(Severity)
    assert [order.index(each.severity) for each in check.findings] == sorted(
        order.index(each.severity) for each in check.findings
    )
    assert check.errors + check.warnings == tuple(each for each in check.findings if each.severity is not Severity.NOTE)
    assert all(isinstance(each, Finding) for each in check.findings)


def test_the_rows_read_are_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_BLOCK", 100)
    told: list[int] = []
    check_catalogue(write(HEAD + rows(250)), advance=told.append)
    assert told == [100, 100, 50]


# --- several labels, and what does not apply ---------------------------------------------------------------


def test_label_sets_are_counted_label_by_label(write: Write) -> None:
    table = "id,title,material\n" + "".join(
        f"{n},Shirt {n},{'Cotton|Wool' if n % 2 else 'cotton'}\n" for n in range(2000)
    )
    extra = 'separator = {material = "|"}\n'
    toml = write(table, extra, labels='attributes = ["material"]\n')
    for check in (check_catalogue(toml), check_listings(Catalogue.open(toml))):
        (material,) = check.attributes
        assert material.multi_valued
        assert (material.labelled, material.labels) == (2000, {"Cotton": 2000, "Wool": 1000})
        evidence = material.evidence[Situation.TITLE]
        pairs = [2 if int(name) % 2 else 1 for name in ids_of(Part.CALIBRATION, check.parts[Part.CALIBRATION], start=0)]
        assert evidence.rows == sum(pairs)
        assert evidence.independent == pytest.approx(sum(pairs) ** 2 / sum(n * n for n in pairs))


def test_what_product_types_never_bear(write: Write) -> None:
    table = "id,title,type,sleeve\n" + "".join(
        f"{n},Thing {n},{('Shirt,long', 'Watch,', 'Shirt,short', 'Watch,')[n % 4]}\n" for n in range(1000)
    )
    toml = write(table, 'product_type = "type"\n', labels='attributes = ["type", "sleeve"]\n')
    for check in (check_catalogue(toml), check_listings(Catalogue.open(toml))):
        assert check.applicability is not None
        (kinds,) = check.applicability.never.values()
        assert list(check.applicability.never) == ["sleeve"]
        assert list(kinds) == ["Watch"]
    assert check_catalogue(write(HEAD + rows(40))).applicability is None
