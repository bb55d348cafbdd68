"""Retries by error class, and nothing else: a task is thin."""
