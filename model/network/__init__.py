"""The CMA-CLIP network: open_clip's towers, the two attentions, the heads, the loss. No files, no listings."""
