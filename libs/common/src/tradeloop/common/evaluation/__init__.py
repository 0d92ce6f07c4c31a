"""The judgement of a policy: the vectorised backtest, baselines, figures of performance, and parity of two runs."""
