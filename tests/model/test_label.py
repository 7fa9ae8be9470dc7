"""Bulk labelling: a row for every listing, in order; the same file however often it was interrupted."""

from __future__ import annotations

import base64
import csv
import errno
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.catalogue.formulas import to_cell
from model.catalogue.listings import iter_listings
from model.config import PreprocessConfig
from model.errors import CatalogueError, ConfigError, ModelError
from model.inference import output
from model.inference.bulk import Labelling, LabellingInterrupted
from model.inference.label import label_catalogue
from model.inference.output import Block, CsvFormat
from model.inference.predictions import (
    Abstention,
    AttributePrediction,
    Candidate,
    ListingWarning,
    ModelInfo,
    Scope,
)
from model.inputs.preprocess import ModelImage
from model.situations import Situation
from model.tasks import Task
from tests.verdicts import verdict

TASKS = (Task(name="colour", labels=("Blue", "Red")), Task(name="size", labels=("L", "S")))
THRESHOLDS = {0.9: 0.5, 0.95: 0.8, 0.99: None}


class FakePrediction:
    def __init__(self, title: str | None, red: float | None, warnings: Sequence[ListingWarning]) -> None:
        self.title, self.red = title, red
        situation = (
            Situation.IMAGE_AND_TITLE if title and red is not None else Situation.TITLE if title else Situation.IMAGE
        )
        self.unfamiliar = "drill" in (title or "")
        familiarity = 0.0012344 if self.unfamiliar else 0.5
        self.scope = Scope(situation=situation, familiarity=familiarity, in_scope=not self.unfamiliar, agreement=None)
        self.warnings = tuple(warnings)

    def attribute(self, name: str, *, target_precision: float, top_k: int) -> AttributePrediction:
        """Red where the title or the image is; long titles are size L, with high confidence."""
        if name == "colour":
            is_red = "red" in (self.title or "").lower() or (self.red or 0) > 128
            label, confidence = ("Red" if is_red else "Blue"), 0.75
        else:
            length = len(self.title or "")
            label, confidence = ("L" if length > 10 else "S"), min(1.0, 0.5 + length / 30)
        threshold = THRESHOLDS[target_precision]
        weight = {Situation.IMAGE_AND_TITLE: 0.25, Situation.IMAGE: 1.0, Situation.TITLE: 0.0}[self.scope.situation]
        return AttributePrediction(
            label=label,
            confidence=confidence,
            abstention=Abstention.UNFAMILIAR_LISTING if self.unfamiliar else verdict(confidence, threshold),
            threshold=threshold,
            target_precision=target_precision,
            candidates=(Candidate(label, confidence),),
            modality_attention={"image": weight, "text": 1 - weight},
            explanation=None,
        )


class FakePredictor:
    """Predicts colours from titles and pixels; `dies_after` listings it is interrupted, like a run by Ctrl-C."""

    def __init__(
        self,
        *,
        dies_after: int | None = None,
        version: str = "3f0c3f0c3f0c",
        engine: str = "torch",
        scope_gate: bool = True,
    ) -> None:
        self.dies_after = dies_after
        self.batches: list[int] = []
        self.prepared_in: set[str] = set()
        self.info = ModelInfo(
            name="fake",
            version=version,
            backbone="none",
            parameters=0,
            device="cpu",
            dtype="float32",
            image_size=(8, 8),
            target_precisions=tuple(THRESHOLDS),
            calibration=str(THRESHOLDS),
            engine=engine,
            scope_gate=scope_gate,
        )
        self.tasks = TASKS
        self.resizing = PreprocessConfig(image_size=(8, 8), context_length=8)

    def thresholds(self, attribute: str) -> Mapping[Situation, Mapping[float, float | None]]:
        return dict.fromkeys(Situation, THRESHOLDS)

    def prepare(
        self,
        title: str | None,
        image: Image.Image | ModelImage | None,
        *,
        explain: bool = False,
        warnings: Sequence[ListingWarning] = (),
    ) -> Any:
        self.prepared_in.add(threading.current_thread().name)
        if title == "breaks the tokenizer":
            raise RecursionError("too odd")
        assert not isinstance(image, Image.Image)  # a worker has decoded it
        red = None if image is None else float(image.pixels[0].mean())
        prediction = FakePrediction(title, red, warnings)
        if not self.info.scope_gate:
            prediction.scope = replace(prediction.scope, familiarity=None, in_scope=None)
        return prediction

    def collate(self, items: Sequence[Any]) -> Any:
        return items

    def predict(self, batch: Any) -> Sequence[FakePrediction]:
        self.batches.append(len(batch))
        if self.dies_after is not None and sum(self.batches) > self.dies_after:
            raise KeyboardInterrupt
        return list(batch)

    def warm_up(self, max_batch_size: int) -> dict[str, float]:
        return {}


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SHARD_ROWS", 4)
    monkeypatch.setattr(output, "MERGED_SHARDS", 2)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return write_catalogue(
        tmp_path,
        "id,title\n"
        "1,A red shirt\n"
        "2,Plain\n"
        "3,\n"  # an image alone
        "4,Torn image\n"
        ",No id\n"
        "6,\n"  # neither title nor image
        "7\n"
        "8,breaks the tokenizer\n"
        "1,Plain\n",  # an id again: every row counts
        {"2": png("red"), "3": png("blue"), "4": b"torn"},
    )


def write_catalogue(folder: Path, table: str, images: Mapping[str, bytes]) -> Path:
    (folder / "photos").mkdir(exist_ok=True)
    for name, data in images.items():
        (folder / "photos" / f"{name}.png").write_bytes(data)
    (folder / "table.csv").write_bytes(table.encode())
    toml = folder / "catalogue.toml"
    photos = 'images = "photos"\nimage = "{id}.png"\n' if images else ""
    toml.write_text(f'[catalogue]\ntable = "table.csv"\n{photos}id = "id"\ntitle = "title"\n')
    return toml


def label(toml: Path, out: str | Path, predictor: FakePredictor | None = None, **options: Any) -> Labelling:
    arguments: dict[str, Any] = {"target_precision": 0.9, "batch_size": 3, "progress": False, **options}
    return label_catalogue(predictor or FakePredictor(), toml, out, **arguments)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- what comes out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.csv", "parts/"])
def test_it_tells_how_many_rows_it_has_just_added(toml: Path, tmp_path: Path, out: str) -> None:
    added: list[int] = []
    rows = label(toml, f"{tmp_path}/{out}", advance=added.append).rows
    assert sum(added) == rows == 9


def test_a_row_for_each_listing_in_order(toml: Path, tmp_path: Path) -> None:
    result = label(toml, tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "", "6", "7", "8", "1"]
    assert list(rows[0]) == [
        "id",
        "colour",
        "colour_confidence",
        "colour_accepted",
        "colour_abstention",
        "colour_image_weight",
        "size",
        "size_confidence",
        "size_accepted",
        "size_abstention",
        "size_image_weight",
        "familiarity",
        "error",
    ]
    assert list(rows[0].values()) == [
        "1", "Red", "0.75", "true", "", "0.0", "L", "0.866667", "true", "", "0.0", "0.5", "",
    ]  # fmt: skip
    assert (rows[1]["colour"], rows[1]["colour_image_weight"]) == ("Red", "0.25")
    assert (rows[2]["colour"], rows[2]["colour_image_weight"]) == ("Blue", "1.0")
    assert (result.rows, result.failed, result.resumed) == (9, 5, 0)
    assert result.report.left_out.total() == 3


def test_what_fails_has_an_error_and_no_labels(toml: Path, tmp_path: Path) -> None:
    label(toml, tmp_path / "out.csv")
    failed = {row["id"]: row for row in read_csv(tmp_path / "out.csv") if row["error"]}
    assert "cannot be decoded" in failed["4"]["error"]
    assert failed[""]["error"] == "line 6: empty id"
    assert failed["6"]["error"] == "line 7: neither title nor image"
    assert failed["7"]["error"] == "line 8: too few fields"
    assert failed["8"]["error"] == "RecursionError: too odd"
    assert all(not value for row in failed.values() for key, value in row.items() if key not in ("id", "error"))


def test_parquet_says_the_same_as_csv(toml: Path, tmp_path: Path) -> None:
    label(toml, tmp_path / "out.csv")
    label(toml, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    attribute = ["string", "double", "bool", "string", "double"]
    assert [str(field.type) for field in table.schema] == ["string", *attribute, *attribute, "double", "string"]
    rows = [{key: output._csv_cell(value) for key, value in row.items()} for row in table.to_pylist()]
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    assert as_text == read_csv(tmp_path / "out.csv")
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 2  # 9 rows, 8 to a row group


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_empty_table_gives_an_empty_output(tmp_path: Path, suffix: str) -> None:
    toml = write_catalogue(tmp_path, "id,title\n", {})
    out = (tmp_path / "out").with_suffix(suffix)
    assert label(toml, out).rows == 0
    assert (read_csv(out) if suffix == ".csv" else pq.read_table(out).to_pylist()) == []


def test_chosen_attributes_and_a_target_nothing_is_certified_at(toml: Path, tmp_path: Path) -> None:
    label(toml, tmp_path / "out.csv", attributes=["size"], target_precision=0.99)
    rows = read_csv(tmp_path / "out.csv")
    size = ["size", "size_confidence", "size_accepted", "size_abstention", "size_image_weight"]
    assert list(rows[0]) == ["id", *size, "familiarity", "error"]
    assert {(row["size_accepted"], row["size_abstention"]) for row in rows} == {("false", "not_certified"), ("", "")}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_each_label_that_is_not_accepted_says_why(tmp_path: Path, suffix: str) -> None:
    toml = write_catalogue(tmp_path, "id,title\n1,Plain\n2,A cordless drill\n3,\n", {"3": png("red")})
    out = (tmp_path / "out").with_suffix(suffix)
    label(toml, out, target_precision=0.95)
    rows = read_csv(out) if suffix == ".csv" else pq.read_table(out).to_pylist()
    assert [row["size_abstention"] for row in rows] == ["low_confidence", "unfamiliar_listing", "low_confidence"]
    assert [float(row["familiarity"]) for row in rows] == [0.5, 0.001234, 0.5]


def test_without_a_scope_gate_the_familiarity_is_empty(toml: Path, tmp_path: Path) -> None:
    label(toml, tmp_path / "out.csv", FakePredictor(scope_gate=False))
    assert {row["familiarity"] for row in read_csv(tmp_path / "out.csv")} == {""}


def test_batches_are_full_and_decoded_off_the_main_thread(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, "id,title\n" + "".join(f"{n},T\n" for n in range(10)), {})
    predictor = FakePredictor()
    label(toml, tmp_path / "out.csv", predictor, batch_size=4)
    assert predictor.batches == [4, 4, 2]
    assert all(name.startswith("decode") for name in predictor.prepared_in)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_on_a_terminal_unless_switched_off(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, progress: bool
) -> None:
    label(toml, tmp_path / "to-a-file.csv", progress=progress)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich take anything for a terminal
    label(toml, tmp_path / "on-a-terminal.csv", progress=progress)
    shown = capsys.readouterr().err
    assert ("labelling" in shown and "9/9" in shown) if progress else shown == ""


def test_no_more_than_two_batches_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = write_catalogue(tmp_path, "id,title\n" + "".join(f"{n},T\n" for n in range(100)), {})
    predictor, read = FakePredictor(), 0
    original = iter_listings

    def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal read
        for item in original(*arguments, **options):
            read += 1
            assert read - sum(predictor.batches) <= 2 * 5
            yield item

    monkeypatch.setattr("model.inference.bulk.iter_listings", counted)
    label(toml, tmp_path / "out.csv", predictor, batch_size=5)
    assert read == 100


# --- images by name, by URL and inside the table -----------------------------------------------------------


def write_named(folder: Path, cells: Sequence[str], images: Mapping[str, bytes]) -> Path:
    table = "id,title,image\n" + "".join(f'{n},Plain,"{cell}"\n' for n, cell in enumerate(cells))
    toml = write_catalogue(folder, table, images)
    photos = "" if images else 'images = "photos"\nimage = "{image}"\n'
    toml.write_text(toml.read_text().replace('"{id}.png"', '"{image}"') + photos)
    return toml


def test_an_image_that_is_named_and_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    toml = write_named(tmp_path, ["red.png", "a\\RED.PNG", "blue.png"], {"red": png("red")})
    label(toml, tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert [row["colour"] for row in rows] == ["Red", "", ""]
    assert [row["error"] for row in rows][1:] == [
        "line 3: no such image: a\\RED.PNG",
        "line 4: no such image: blue.png",
    ]


def test_where_a_column_names_images_and_none_is_there_nothing_is_labelled(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"none of the 1 images .*the first path tried is blue\.png"):
        label(write_named(tmp_path, ["blue.png"], {}), tmp_path / "out.csv")


def test_where_a_template_finds_no_image_every_row_says_so(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, "id,title\n1,A red shirt\n2,Plain\n", {"other": png("red")})
    result = label(toml, tmp_path / "out.csv")
    assert (result.failed, result.report.images.found) == (2, 0)
    assert read_csv(tmp_path / "out.csv")[0]["error"] == "line 2: no such image: 1.png"
    assert label(toml, tmp_path / "titles.csv", allow_missing_images=True).failed == 0


def test_missing_images_may_be_allowed(tmp_path: Path) -> None:
    cells = ["red.png", "blue.png"]
    toml = write_named(tmp_path, cells, {"red": png("red")})
    result = label(toml, tmp_path / "out.csv", allow_missing_images=True)
    there, absent = read_csv(tmp_path / "out.csv")
    assert (there["colour_image_weight"], absent["colour_image_weight"]) == ("0.25", "0.0")
    assert (result.failed, result.report.images.not_found) == (0, 1)
    (tmp_path / "photos" / "red.png").unlink()
    assert label(toml, tmp_path / "none.csv", allow_missing_images=True).failed == 0


@pytest.mark.parametrize(("missing", "warned"), [(0, False), (4, False), (5, True)])
def test_many_missing_images_are_warned_of(tmp_path: Path, missing: int, warned: bool) -> None:
    cells = ["red.png"] * (100 - missing) + ["blue.png"] * missing
    result = label(write_named(tmp_path, cells, {"red": png("red")}), tmp_path / "out.csv")
    warning = result.report.images.warning
    assert (warning is not None) is warned
    if warning:
        assert warning == "5 of the 100 images that the table names (5%) were not found, such as blue.png"


def test_urls_are_fetched_and_one_that_fails_fails_alone(tmp_path: Path) -> None:
    def fetch(url: str) -> bytes:
        if "gone" in url:
            raise CatalogueError(f"{url}: status 404")
        return png("red")

    toml = write_named(tmp_path, ["https://a.example/1.png", "https://a.example/gone.png"], {})
    label(toml, tmp_path / "out.csv", fetch=fetch)
    first, second = read_csv(tmp_path / "out.csv")
    assert (first["colour"], first["colour_image_weight"], first["error"]) == ("Red", "0.25", "")
    assert (second["colour"], second["error"]) == ("", "https://a.example/gone.png: status 404")


def test_the_first_of_several_images_that_can_be_read_counts(tmp_path: Path) -> None:
    toml = write_named(tmp_path, ["torn.png|red.png"], {"torn": b"torn", "red": png("red")})
    label(toml, tmp_path / "out.csv")
    assert read_csv(tmp_path / "out.csv")[0]["colour"] == "Red"


def test_images_inside_the_table(tmp_path: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(png("red")).decode()
    toml = write_named(tmp_path, [url, "data:image/png;base64,AAAA"], {"other": png("blue")})
    label(toml, tmp_path / "out.csv")
    first, second = read_csv(tmp_path / "out.csv")
    assert (first["colour"], first["error"]) == ("Red", "")
    assert "cannot be decoded" in second["error"]


# --- interruption ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 14), max_size=3), batch_sizes=st.lists(st.integers(1, 7), min_size=4, max_size=4))
def test_wherever_it_was_cut_the_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, cuts: list[int], batch_sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    rows = (f"{n},{'' if n % 7 == 3 else f'Title {n}'}\n" for n in range(14))
    toml = write_catalogue(folder, "id,title\n" + "".join(rows), {})
    whole, cut = folder / f"whole{suffix}", folder / f"cut{suffix}"
    label(toml, whole)
    for dies_after, batch_size in zip(cuts, batch_sizes, strict=False):
        try:
            label(toml, cut, FakePredictor(dies_after=dies_after), batch_size=batch_size)
        except KeyboardInterrupt:
            assert not cut.exists()
        else:
            break  # nothing was left to interrupt
    if not cut.exists():
        label(toml, cut, batch_size=batch_sizes[-1])
    assert cut.read_bytes() == whole.read_bytes()
    assert not cut.with_name(cut.name + ".partial").exists()


def interrupt(toml: Path, out: str | Path, dies_after: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(toml, out, FakePredictor(dies_after=dies_after), **options)


def dies_at_once_after(listings: int) -> Any:
    def predict(self: FakePredictor, batch: Any) -> Sequence[FakePrediction]:
        self.batches.append(len(batch))
        if sum(self.batches) > listings:
            raise MemoryError  # as abrupt as a signal, to what writes the shards
        return list(batch)

    return predict


@pytest.fixture
def long_toml(tmp_path: Path) -> Path:
    return write_catalogue(tmp_path, "id,title\n" + "".join(f"{n},Title {n}\n" for n in range(12)), {})


def test_what_was_finished_is_not_computed_again(long_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    interrupt(long_toml, out, 9)
    predictor = FakePredictor()
    result = label(long_toml, out, predictor)
    assert (result.resumed, result.rows, sum(predictor.batches)) == (9, 12, 3)
    assert result.report.rows == 12


def test_ctrl_c_says_how_far_it_came(long_toml: Path, tmp_path: Path) -> None:
    with pytest.raises(LabellingInterrupted, match=r"^2 of about 13 rows are finished$") as stopped:
        label(long_toml, tmp_path / "out.csv", FakePredictor(dies_after=2), batch_size=1)
    assert list(Path(stopped.value.place).glob("0000000000-2-0.csv"))
    with pytest.raises(LabellingInterrupted, match=r"^2 of about 13 rows are finished$"):
        label(long_toml, tmp_path / "out.csv", FakePredictor(dies_after=0))
    assert label(long_toml, tmp_path / "out.csv").resumed == 2
    assert len(read_csv(tmp_path / "out.csv")) == 12


def test_a_run_that_is_killed_loses_less_than_a_shard(
    long_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr(FakePredictor, "predict", dies_at_once_after(9))
        with pytest.raises(MemoryError):
            label(long_toml, out)
    assert label(long_toml, out).resumed == 8


def test_a_half_written_shard_is_written_again(long_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    interrupt(long_toml, out, 9)
    (tmp_path / "out.csv.partial" / "half-written.csv").write_text("8,Blu")
    label(long_toml, out)
    assert [row["id"] for row in read_csv(out)] == [str(n) for n in range(12)]


def test_an_interrupted_merge_is_done_again(long_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"

    def torn(self: object, shards: Iterable[IO[bytes]], file: IO[bytes]) -> None:
        file.write(b"id,colo")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CsvFormat, "merge", torn)
        with pytest.raises(KeyboardInterrupt):
            label(long_toml, out)
    predictor = FakePredictor()
    assert label(long_toml, out, predictor).resumed == 12
    assert predictor.batches == []
    assert len(read_csv(out)) == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"target_precision": 0.95}, "target precision"),
        ({"attributes": ["size", "colour"]}, "attributes"),
        ({"predictor": FakePredictor(version="000000000000")}, "checkpoint"),
        ({"predictor": FakePredictor(engine="openvino-int8")}, "engine"),
        ({"predictor": FakePredictor(scope_gate=False)}, "scope gate"),
    ],
)
def test_other_settings_are_refused(long_toml: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    out = tmp_path / "out.csv"
    interrupt(long_toml, out, 9)
    with pytest.raises(ConfigError, match=rf"out\.csv\.partial was begun with another {named}; delete it"):
        label(long_toml, out, **change)


def test_another_table_and_other_thresholds_are_refused(
    long_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    interrupt(long_toml, out, 9)
    with monkeypatch.context() as patch:
        patch.setitem(THRESHOLDS, 0.9, 0.6)
        with pytest.raises(ConfigError, match="another calibration"):
            label(long_toml, out)
    (tmp_path / "table.csv").write_text("id,title\n1,Other\n")
    with pytest.raises(ConfigError, match="another table"):
        label(long_toml, out)


def test_rows_of_a_release_with_other_columns_are_refused(long_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    interrupt(long_toml, out, 9)
    written = out.with_name("out.csv.partial") / output.SETTINGS
    earlier = json.loads(written.read_text())
    del earlier["layout of the output"]  # as a release wrote it that had no such setting
    written.write_text(json.dumps(earlier))
    with pytest.raises(ConfigError, match="begun with another layout of the output; delete it"):
        label(long_toml, out)


def test_a_run_with_placeholders_of_its_own_goes_on(long_toml: Path, tmp_path: Path) -> None:
    long_toml.write_text(long_toml.read_text() + 'placeholders = ["Title 3"]\n')
    interrupt(long_toml, tmp_path / "out.csv", 9)
    assert label(long_toml, tmp_path / "out.csv").resumed >= 9


def test_another_batch_size_is_fine(long_toml: Path, tmp_path: Path) -> None:
    interrupt(long_toml, tmp_path / "out.csv", 9)
    assert label(long_toml, tmp_path / "out.csv", batch_size=1).resumed == 9


def test_a_lost_shard_is_noticed(long_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    interrupt(long_toml, out, 9)
    (tmp_path / "out.csv.partial" / "0000000000-4-0.csv").unlink()
    with pytest.raises(ConfigError, match=r"lacks rows before 0000000004-4-0\.csv"):
        label(long_toml, out)


# --- two runs, and what comes of a file that isn't whole --------------------------------------------------


class InterruptedPredictor(FakePredictor):
    """In the middle of its run a second one begins to write the same output."""

    def __init__(self, toml: Path, out: Path) -> None:
        super().__init__()
        self.toml, self.out = toml, out
        self.refusals: list[str] = []

    def predict(self, batch: Any) -> Sequence[FakePrediction]:
        with pytest.raises(ConfigError) as caught:
            label(self.toml, self.out)
        self.refusals.append(str(caught.value))
        return super().predict(batch)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_second_run_on_one_output_is_refused(long_toml: Path, tmp_path: Path, suffix: str) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    label(long_toml, whole)
    predictor = InterruptedPredictor(long_toml, out)
    assert label(long_toml, out, predictor).rows == 12
    folder = f"{out}.partial"
    assert predictor.refusals == [f"another run is writing {folder}; wait for it, or name another output"] * 4
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(folder).exists()


def test_a_run_that_was_killed_keeps_nobody_out(long_toml: Path, tmp_path: Path) -> None:
    interrupt(long_toml, tmp_path / "out.csv", 9)
    assert (tmp_path / "out.csv.partial" / "lock").exists()
    assert label(long_toml, tmp_path / "out.csv").resumed == 9


def test_an_output_that_appears_before_the_lock_is_taken_is_not_overwritten(
    long_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    mkdir = Path.mkdir

    def finish_first(self: Path, *arguments: Any, **options: Any) -> None:
        out.write_text("another run's")
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", finish_first)
    with pytest.raises(ConfigError, match="exists already"):
        label(long_toml, out)
    assert out.read_text() == "another run's"
    assert not (tmp_path / "out.csv.partial").exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_counted_before_the_merge(long_toml: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    interrupt(long_toml, out, 9)
    first, second = sorted((tmp_path / f"out{suffix}.partial").glob(f"*-4-0{suffix}"))
    if suffix == ".csv":
        second.write_bytes(second.read_bytes() + first.read_bytes().splitlines(keepends=True)[0])
    else:
        pq.write_table(pq.read_table(first).slice(0, 3), second)
    with pytest.raises(ModelError, match=r"0000000004-4-0.* holds [35] rows, not 4; delete"):
        label(long_toml, out)
    assert not out.exists()


def test_a_cell_that_a_spreadsheet_would_run_is_text_and_is_read_back(tmp_path: Path) -> None:
    ids = ["=1+1", "+1-1", "-sku", "@a", "-5", "plain", "'=quoted"]
    toml = write_catalogue(tmp_path, "id,title\n" + "".join(f"{to_cell(each)},T\n" for each in ids), {})
    label(toml, tmp_path / "out.csv")
    written = [row["id"] for row in read_csv(tmp_path / "out.csv")]
    assert written == ["'=1+1", "'+1-1", "'-sku", "'@a", "-5", "plain", "''=quoted"]
    (tmp_path / "table.csv").write_bytes((tmp_path / "out.csv").read_bytes().replace(b"id,colour,", b"id,title,"))
    label(toml, tmp_path / "again.csv")
    assert [row["id"] for row in read_csv(tmp_path / "again.csv")] == written
    label(toml, tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet")["id"].to_pylist() == ids


def test_numbers_are_written_as_they_are() -> None:
    assert output._csv_cell(-0.5) == -0.5
    assert output._csv_cell("-0.5") == "-0.5"


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.xlsx", {}, r"\.csv or \.parquet"),
        ("table.csv", {}, "exists already"),
        ("nowhere/out.csv", {}, "cannot write to the folder"),
        ("out.csv", {"attributes": ["shape"]}, "unknown attribute 'shape'; the checkpoint predicts colour, size"),
        ("out.csv", {"attributes": ["size", "size"]}, "two columns called 'size'"),
        ("out.csv", {"target_precision": 0.8}, r"0\.8 was not calibrated; there are 0\.9, 0\.95, 0\.99"),
        ("out.csv", {"batch_size": 0}, "batch size"),
    ],
)
def test_mistakes_cost_nothing(toml: Path, tmp_path: Path, out: str, options: dict[str, Any], message: str) -> None:
    predictor = FakePredictor()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        label(toml, tmp_path / out, predictor, **options)
    assert sorted(tmp_path.rglob("*")) == before
    assert predictor.batches == []


def test_an_unusable_table_leaves_nothing_behind(tmp_path: Path) -> None:
    toml = write_catalogue(tmp_path, "sku,title\n1,T\n", {})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CatalogueError, match="no column 'id'"):
        label(toml, tmp_path / "out.csv")
    (tmp_path / "table.csv").unlink()
    with pytest.raises(CatalogueError, match="cannot read"):
        label(toml, tmp_path / "out.csv")
    assert {*before} - {*tmp_path.rglob("*")} == {tmp_path / "table.csv"}


def test_a_full_disk_is_one_line_and_costs_a_shard(
    long_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CsvFormat.write

    def fill_up(self: CsvFormat, file: IO[bytes], blocks: Sequence[Block]) -> None:
        if blocks[0].data.startswith(b"8,"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, file, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(CsvFormat, "write", fill_up)
        with pytest.raises(ModelError, match=r"cannot write .*out\.csv: No space left on device"):
            label(long_toml, tmp_path / "out.csv")
    assert label(long_toml, tmp_path / "out.csv").resumed == 8


def test_the_settings_are_kept_readable(long_toml: Path, tmp_path: Path) -> None:
    interrupt(long_toml, tmp_path / "out.csv", 9)
    kept = json.loads((tmp_path / "out.csv.partial" / "settings.json").read_text())
    assert (kept["checkpoint"], kept["target precision"], kept["attributes"]) == (
        "3f0c3f0c3f0c",
        0.9,
        ["colour", "size"],
    )
