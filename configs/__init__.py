"""The shipped configurations; `kdlightning list` prints them and `-c offline/response/kd` finds them from anywhere."""
