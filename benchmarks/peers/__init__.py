"""Public implementations that ours is compared with, one method a file: values, gradients, time, memory.

Nothing of theirs is copied: each file says which function of which repository, at which commit, takes which inputs.
"""
