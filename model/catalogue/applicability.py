"""Learns from labelled listings which product types never bear an attribute.

Needs scipy (`model.trust.binomial`), so it is for training and checking only: serving uses what was learned
(`model.trust.applicability`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from model.catalogue.listings import Listing
from model.trust.applicability import Applicability, Borne
from model.trust.binomial import lower_bound

SLIPS = 0.01
"""The share of a product type's listings that may have a label all the same: slips of data entry."""

RARE = 0.05
"""No product type whose listings may bear the attribute as often as this is said to never bear it."""

RARER = 0.1
"""Nor one whose listings may bear it as often as this share of how often listings bear it at all: where few listings
are labelled, it takes more of them to tell that a product type is without labels for a reason."""

UNCERTAINTY = 0.05


class BorneCounts:
    """Counts, listing by listing, how many of each product type bear each attribute; bounded by the product types."""

    def __init__(self, product_type: str, attributes: Sequence[str]) -> None:
        self._product_type = product_type
        self._seen: Counter[str] = Counter()
        self._labelled: dict[str, Counter[str]] = {each: Counter() for each in attributes if each != product_type}

    def add(self, listing: Listing) -> None:
        """Count a listing of the train part."""
        kind = listing.labels.get(self._product_type)
        if kind is None:
            return
        self._seen[kind] += 1
        for attribute, counts in self._labelled.items():
            counts[kind] += listing.has_label(attribute)

    def learned(self, known: Iterable[str] | None = None) -> Applicability:
        """Return what was learned (`learn_applicability`) of the product types that are known; None for all."""
        seen = self._seen
        kinds = sorted(seen if known is None else seen.keys() & set(known))
        never = {}
        for attribute, counts in self._labelled.items():
            overall = counts.total() / max(1, seen.total())
            never[attribute] = {
                kind: borne
                for kind in kinds
                if never_bears(borne := Borne(listings=seen[kind], labelled=counts[kind]), overall)
            }
        return Applicability(product_type=self._product_type, never={name: own for name, own in never.items() if own})


def learn_applicability(
    listings: Iterable[Listing], product_type: str, attributes: Sequence[str], *, known: Iterable[str] | None = None
) -> Applicability:
    """Return which of the `attributes` are never borne by listings of which product types.

    listings: of the train part. product_type: the attribute that tells product types. known: the product types that the
    model knows; None for all.

    **The rule.** Of n listings of a product type k have a label for the attribute. The type never bears it where k is
    at most a hundredth of n (`SLIPS`), and the upper limit of the rate at which its listings bear it (Clopper and
    Pearson, at 95 % confidence) is at most a twentieth (`RARE`), and at most a tenth of the rate at which all listings
    with a product type bear the attribute (`RARER`). For an attribute that at least half of the listings have, that
    takes 59 listings without a label. Less evidence decides nothing: the attribute then counts as applicable.
    """
    counts = BorneCounts(product_type, attributes)
    for listing in listings:
        counts.add(listing)
    return counts.learned(known)


def never_bears(borne: Borne, overall: float) -> bool:
    """Whether this is evidence enough (`learn_applicability`); overall: the share of all listings that have a label."""
    n, k = borne.listings, borne.labelled
    upper_limit = 1 - lower_bound(n - k, n, UNCERTAINTY)
    return k <= SLIPS * n and upper_limit <= min(RARE, RARER * overall)


def describe_applicability(found: Applicability) -> str:
    """Return a line per attribute that some product types never bear, the types with most listings first."""
    if not found.never:
        return f"every attribute may apply to every {found.product_type}, as far as the listings tell"
    lines = []
    for attribute, own in found.never.items():
        types = sorted(own.items(), key=lambda each: (-each[1].listings, each[0]))
        shown = ", ".join(f"{kind} ({borne.labelled} of {borne.listings:,} listings)" for kind, borne in types[:SHOWN])
        more = f" and {len(types) - SHOWN} more" if len(types) > SHOWN else ""
        lines.append(f"{attribute}: not applicable to {shown}{more}")
    return "\n".join(lines)


SHOWN = 10
