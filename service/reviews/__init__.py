"""People judge a random share of what is answered, and what was not accepted: capture, queue, live precision."""
