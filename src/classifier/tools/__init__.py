"""What the scripts in scripts/ do."""
