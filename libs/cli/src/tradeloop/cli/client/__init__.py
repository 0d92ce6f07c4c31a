"""How the command speaks to a stack: one that runs elsewhere, or one embedded in this process."""
