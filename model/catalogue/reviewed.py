"""Listings that people have reviewed, as a catalogue: thresholds can be certified on what a service was sent.

The random share of reviews is a sample of the listings that come in, judged without the model's answer. A part of it,
drawn by a hash, shows what is familiar; certificates are of the rest. Nothing is left for training or for a test.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.catalogue.config import CatalogueConfig
from model.catalogue.listings import Catalogue, Listing, ReadReport
from model.catalogue.splits import Part, share_of
from model.errors import CatalogueError

SCOPE_SHARES: Mapping[Part, float] = {Part.TRAIN: 0.1, Part.VALIDATION: 0.1}
"""What the gate is fitted on: what is familiar, and its limits. The rest is for certificates alone."""

SKIPPED = "(skipped)"
"""The label of a pair that nobody could judge: in no vocabulary, so that whatever is answered counts as wrong."""

NONE_FITS = "(no label fits)"
"""The label of a listing that has none of the attribute's: so that whatever is answered is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewedListing:
    """A listing of the random share: `labels` are what people chose, `SKIPPED` or `NONE_FITS` among them."""

    name: str
    """What the image is read by; one of each listing."""
    id: str | None
    """The caller's own."""
    title: str | None
    has_image: bool
    labels: Mapping[str, str]
    label_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The same of multi-valued attributes."""


@dataclass(frozen=True)
class ReviewedImages:
    """Images that are read by a function of the listing's name: bytes, or None where there is none."""

    find: Callable[[str], bytes | None]

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def read(self, name: str) -> bytes:
        """Return the bytes of an image file; raises `CatalogueError` where it has been deleted since."""
        found = self.find(name)
        if found is None:
            raise CatalogueError(f"the image of the reviewed listing {name} is not there any more")
        return found


def reviewed_catalogue(
    listings: Iterable[ReviewedListing],
    attributes: Sequence[str],
    images: ReviewedImages,
    *,
    seen: Collection[str] = (),
) -> Catalogue:
    """Return reviewed listings as a catalogue; those that share a title are in one part.

    seen: ids of listings that a model was trained or tuned on, which are left out and counted
    Raises `CatalogueError` where none is left.
    """
    report = ReadReport("reviews")
    kept = []
    for line, each in enumerate(listings, start=1):
        report.add_row(line, repaired=False)
        if each.id in seen:
            report.left_out["the catalogue trains on it"] += 1
            report.left_out_lines.setdefault("the catalogue trains on it", [])
            continue
        kept.append(_listing(each))
        report.add_listing(kept[-1], attributes)
    if not kept:
        raise CatalogueError(f"no listing of the random share has been reviewed:\n{report}")
    config = CatalogueConfig(
        path=Path("the reviews"), table=Path("reviews.csv"), id="id", title="title", attributes=tuple(attributes)
    )
    return Catalogue(config, tuple(kept), report, images)


def _listing(each: ReviewedListing) -> Listing:
    group = " ".join(each.title.casefold().split()) if each.title else each.name
    return Listing(
        id=each.name,
        title=each.title,
        image=each.name if each.has_image else None,
        labels=each.labels,
        label_sets=each.label_sets,
        group=group,
        part=share_of(f"reviews\x1f{group}", SCOPE_SHARES, rest=Part.CALIBRATION),
    )
