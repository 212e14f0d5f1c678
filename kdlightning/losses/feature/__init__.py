"""Feature knowledge: maps and vectors inside the networks. One method a file."""
