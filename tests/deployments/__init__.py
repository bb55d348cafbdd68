"""Every deployment loads, and its parameters are valid."""
