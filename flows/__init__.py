"""Flows compose tasks and decide nothing; the command line starts them."""
