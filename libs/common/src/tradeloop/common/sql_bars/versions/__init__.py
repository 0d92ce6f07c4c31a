"""Migrations of the bars, in the order of their names."""
