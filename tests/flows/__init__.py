"""Whole runs: entry again, failed partitions, kills, the command line."""
