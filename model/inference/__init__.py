"""A loaded checkpoint at work: predictions, explanations, the stream of batches, bulk labelling."""
