"""What may be promised: temperatures, certified thresholds, binomial bounds. Maths on numpy; no torch, no files."""
