"""Relational knowledge: how samples or layers relate to each other. One method a file.

They compare what one micro-batch holds: gradient accumulation and more devices do not enlarge it.
"""
