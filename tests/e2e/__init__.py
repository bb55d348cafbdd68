"""Whole nights, as a user starts them."""
