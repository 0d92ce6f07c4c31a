"""What a policy came to: the vectorised backtest, and the baselines that it must beat."""
