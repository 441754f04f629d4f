"""Predictions -> numbers, tables, pictures."""
