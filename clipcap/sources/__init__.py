"""Where images come from: one file a kind, each with `Settings` and `samples`."""
