"""How inference knows what was published before it started."""
