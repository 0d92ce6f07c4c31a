"""One portfolio's book, and what it reads."""
