"""One file for each command, or for commands that are alike."""
