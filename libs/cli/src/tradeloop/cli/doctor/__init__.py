"""`tradeloop doctor`: what a stack needs, looked at without changing any of it."""
