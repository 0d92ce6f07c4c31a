"""Venues and ledgers."""
