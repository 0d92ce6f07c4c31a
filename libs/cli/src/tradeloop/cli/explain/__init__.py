"""A decision explained from what is on record: from bar to reward, and why there is no order where there is none.

Everything comes from the messages that services published, and nothing is asked of a service. What the bus does not
hold any more is said to be gone, and never guessed.
"""
