"""A range traded once more beside a running stack, and held against what live did."""
