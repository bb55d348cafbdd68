"""Each module's own promises."""
