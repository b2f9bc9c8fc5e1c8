"""Speed and memory, measured from outside; `python -m benchmarks` prints the table."""
