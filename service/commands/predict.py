"""`cma-clip predict`: one listing, predicted in this process and shown on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.errors import ConfigError
from model.inference.predictions import Abstention, ListingWarning, check_target_precision
from model.inputs.decode import Decoded
from model.situations import Situation
from model.tasks import Task
from service.app import load_predictor
from service.commands import heat_map
from service.commands.names import REASONS, readable
from service.errors import ServiceError
from service.pipeline import decode as images
from service.schemas import (
    AttributeReply,
    Candidate,
    ClassifyReply,
    LabelSetReply,
    Scope,
    TokenWeight,
    Verdict,
    said_title,
)
from service.settings import Settings

NARROW = 120
"""Columns of a terminal below which bars are short and alternatives stand under the label, so that figures fit."""

LONG_BAR, SHORT_BAR = 20, 8

TINTS = ((0.75, "bold white on magenta"), (0.4, "bold magenta"), (0.15, "magenta"), (0.0, "dim"))
"""How a word is shown whose weight is at least such a share of the heaviest one's, on dark ground and light."""

SITUATIONS = {
    Situation.IMAGE_AND_TITLE: "image and title",
    Situation.IMAGE: "the image alone",
    Situation.TITLE: "the title alone",
}

WARNINGS = {
    ListingWarning.TITLE_TRUNCATED: "The title is longer than what the model reads: its end was cut.",
    ListingWarning.TITLE_IGNORED: "The title was ignored: it is a placeholder, or unfamiliar beside a familiar image.",
    ListingWarning.PROFILE_UNREADABLE: "The image's colour profile cannot be read: its colours were taken as sRGB.",
}

HEAVIEST = 2
"""Words whose weights are written out: a pipe and a printer know no colours."""


def predict_one(
    settings: Settings,
    *,
    image: Path | None,
    title: str | None,
    top_k: int,
    attributes: Sequence[str] | None = None,
    explain: bool = False,
    heat_map_file: Path | None = None,
) -> ClassifyReply:
    """Answer a listing as the service would, on the attributes named (None: all); a heat map, where one is wanted, is
    written to its file.

    Raises `ModelError` where the input or the checkpoint cannot be used, or the heat map cannot be written.
    """
    said = said_title(title or "", None)
    if image is None and said is None:
        raise ConfigError("give an image, a --title that says something, or both")
    if heat_map_file is not None and image is None:
        raise ConfigError("--heat-map needs an image")
    images.configure_pillow()
    predictor = load_predictor(settings)
    if predictor.info.target_precisions:  # a checkpoint that is not calibrated answers, and accepts nothing
        check_target_precision(predictor.info, settings.target_precision)
    names = _chosen(attributes, predictor.tasks)
    decoded = _open(image, settings, predictor.info.image_size) if image else None
    photo, warnings = (decoded.image, decoded.warnings) if decoded else (None, ())
    if said is None and title and not title.isspace():
        warnings = (ListingWarning.TITLE_IGNORED, *warnings)
    explain = explain or heat_map_file is not None
    prepared = predictor.prepare(said, photo, explain=explain, warnings=warnings)
    (prediction,) = predictor.predict(predictor.collate([prepared]))
    predictions = {
        name: prediction.attribute(name, target_precision=settings.target_precision, top_k=top_k) for name in names
    }
    reply = ClassifyReply.of(image.name if image else None, predictor.info, prediction, predictions)
    if heat_map_file is not None and image is not None:
        large = _open(image, settings, heat_map.PANEL_SIZE).image
        _save(heat_map.draw(large, reply), heat_map_file)
    return reply


def _chosen(attributes: Sequence[str] | None, tasks: Sequence[Task]) -> Sequence[str]:
    known = [task.name for task in tasks]
    if unknown := [name for name in attributes or () if name not in known]:
        raise ConfigError(f"unknown attribute {unknown[0]!r}; the checkpoint predicts {', '.join(known)}")
    return attributes or known


def _open(path: Path, settings: Settings, target: tuple[int, int]) -> Decoded:
    try:
        return images.decode(path.read_bytes(), max_pixels=settings.max_image_pixels, target=target)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ServiceError as error:
        raise ConfigError(f"cannot read {path}: {error.detail}") from None


def _save(image: Image.Image, path: Path) -> None:
    try:
        image.save(path, "PNG")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def draw(reply: ClassifyReply, console: Console | None = None) -> None:
    """Print a table: label, confidence as a bar with the threshold marked, whether it is accepted or why not, and the
    weights of image and text; below it, how familiar the listing is, and warnings; and, where it was explained, the
    title once per attribute, its words tinted by weight.
    """
    console = console or Console()
    narrow = console.width < NARROW
    bar = SHORT_BAR if narrow else LONG_BAR
    table = _table(f"{reply.model.name} {reply.model.version}")
    table.add_column("attribute", no_wrap=True)
    table.add_column("label")
    for heading in ("confidence", "", "image / text"):
        table.add_column(heading, no_wrap=True)
    if not narrow:
        table.add_column("otherwise")
    for name, attribute in reply.attributes.items():
        answered, further = _answered(attribute)
        shares = [(each.label, f"{each.confidence:.0%}") for each in further]
        others = Text(", ".join(f"{label} {share}" for label, share in shares if share != "0%"), "dim")
        labels = [Text(each.label, "bold" if each.accepted else "") for each in answered]
        table.add_row(
            Text(readable(name)),
            Text("\n").join([*labels, others] if narrow and others else labels),
            Text("\n").join(_confidence(each, bar) for each in answered),
            Text("\n").join(map(_verdict, answered)),
            _balance(attribute.modality_attention.image, bar),
            *([] if narrow else [others]),
        )
    console.print(table)
    console.print()
    console.print(Text("\n").join(_remarks(reply)))
    words = {
        name: attribute.explanation.text
        for name, attribute in reply.attributes.items()
        if attribute.explanation is not None and attribute.explanation.text
    }
    if words:
        console.print()
        console.print(_words_table(words))


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)


def _answered(attribute: AttributeReply | LabelSetReply) -> tuple[Sequence[Verdict], Sequence[Verdict | Candidate]]:
    """Return what a line of the table each is for, and what else could be: of a multi-valued attribute the accepted
    labels, or the likeliest where none is.
    """
    if isinstance(attribute, AttributeReply):
        return [attribute], attribute.candidates[1:]
    accepted = [each for each in attribute.labels if each.accepted] or attribute.labels[:1]
    return accepted, attribute.labels[len(accepted) :]


def _verdict(attribute: Verdict) -> Text:
    reason = attribute.abstention
    return Text("accepted", "green") if reason is None else Text(REASONS[reason], "yellow")


def _remarks(reply: ClassifyReply) -> Iterator[Text]:
    """What to know about the listing as a whole, a line each."""
    yield _scope(reply.scope)
    if reply.scope.in_scope is None:
        yield Text("The checkpoint has no scope gate: unfamiliar listings are not recognised.", "yellow")
    elif not reply.scope.in_scope:
        unlike = "Unfamiliar: unlike the listings that the thresholds were certified on, so nothing is accepted."
        yield Text(unlike, "yellow")
    contradictory = [
        name
        for name, attribute in reply.attributes.items()
        if _answered(attribute)[0][0].abstention is Abstention.MODALITIES_DISAGREE
    ]
    if contradictory:
        names = ", ".join(map(readable, contradictory))
        yield Text(f"Contradictory: image and title, each taken alone, contradict each other on {names}.", "yellow")
    for warning in reply.warnings:
        yield Text(WARNINGS[warning], "yellow")


def _scope(scope: Scope) -> Text:
    """What was answered from, and the two p-values where they are known."""
    p_values = {"familiarity": scope.familiarity, "agreement of image and title": scope.agreement}
    known = [f"{name} {value:.2g}" for name, value in p_values.items() if value is not None]
    return Text("; ".join([f"Answered from {SITUATIONS[scope.situation]}", *known]), "dim")


def _confidence(attribute: Verdict, length: int) -> Text:
    """A bar with a mark at the threshold, where there is one, and the figure."""
    filled = round(attribute.confidence * length)
    bar, colour = "█" * filled + "░" * (length - filled), "green" if attribute.accepted else "yellow"
    figure = f" {attribute.confidence:6.1%}"
    if attribute.threshold is None:
        return Text.assemble((bar, colour), figure)
    mark = min(int(attribute.threshold * length), length - 1)
    return Text.assemble((bar[:mark], colour), ("┃", "bold"), (bar[mark + 1 :], colour), figure)


def _balance(image: float, length: int) -> Text:
    """A bar of two parts: the weight of the image, then that of the text."""
    left, percent = round(image * length), round(100 * image)
    return Text.assemble(("█" * left, "cyan"), ("█" * (length - left), "blue"), f" {percent} / {100 - percent} %")


def _words_table(words: dict[str, list[TokenWeight]]) -> Table:
    table = _table("what the answers are based on in the title")
    table.add_column("attribute", no_wrap=True)
    table.add_column("title")
    table.add_column("heaviest")
    for name, tokens in words.items():
        heaviest = sorted(tokens, key=lambda token: -token.weight)[:HEAVIEST]
        named = ", ".join(f"{token.token} {token.weight:.0%}" for token in heaviest)
        table.add_row(Text(readable(name)), _tinted(tokens), Text(named, "dim"))
    return table


def _tinted(tokens: Sequence[TokenWeight]) -> Text:
    """The words, each the stronger the nearer its weight is to the heaviest one's."""
    most = max(token.weight for token in tokens)
    return Text(" ").join(Text(token.token, _tint(token.weight / most if most else 0.0)) for token in tokens)


def _tint(share: float) -> str:
    return next(style for least, style in TINTS if share >= least)
