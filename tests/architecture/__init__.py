"""The direction of imports, the names of files, and their size."""
