"""Metrics, logs, and what is logged about a request."""
