"""One prepared run on an accelerator: what is right there, what waits, and how fast it is."""
