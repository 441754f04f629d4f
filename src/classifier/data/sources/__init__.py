"""Where samples come from: each lists what is on disk as one Samples table."""
