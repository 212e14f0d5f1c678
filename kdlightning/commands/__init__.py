"""The command's sub-commands, one a file, imported when they are called."""
