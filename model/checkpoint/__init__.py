"""The checkpoint folder and its model card."""
