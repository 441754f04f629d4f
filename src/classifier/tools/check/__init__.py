"""What scripts/check_data.py finds out: images are read, remarked upon, and the remarks reported."""
