"""The model card: results between their markers, everything else by hand."""

from __future__ import annotations

from pathlib import Path

from model.checkpoint.card import BEGIN, END, update_card
from model.checkpoint.folder import load_checkpoint


def test_a_card_is_begun_and_its_results_replaced(checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    path = update_card(checkpoint, "Measured.")
    first = path.read_text(encoding="utf-8")
    assert path == checkpoint_folder / "README.md"
    assert first.startswith("# tiny\n\nPredicts colour, shape from")
    assert f"{BEGIN}\n\nVersion `{checkpoint.version}`. Measured.\n{END}\n" in first
    path.write_text(first.replace("Say here under which licence", "MIT"), encoding="utf-8")
    update_card(checkpoint, "Measured again.")
    assert path.read_text(encoding="utf-8") == first.replace("Measured.", "Measured again.").replace(
        "Say here under which licence", "MIT"
    )


def test_a_card_without_markers_gets_its_results_at_the_end(checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    (checkpoint_folder / "README.md").write_text("# By hand\n", encoding="utf-8")
    text = update_card(checkpoint, "Measured.").read_text(encoding="utf-8")
    assert text == f"# By hand\n\n## Results\n\n{BEGIN}\n\nVersion `{checkpoint.version}`. Measured.\n{END}\n"
