"""Callbacks: knowledge that is read from inside networks, and helpers that watch a run."""

if __name__ == "callbacks":
    raise ImportError("this folder is installed as kdlightning.callbacks: import kdlightning.callbacks")
