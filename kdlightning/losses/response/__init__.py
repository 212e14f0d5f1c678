"""Response knowledge: what the networks answer. One method a file."""
