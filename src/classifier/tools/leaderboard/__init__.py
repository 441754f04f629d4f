"""What scripts/leaderboard.py tells: which runs there are, what they reached, and in which settings they differ."""
