"""What the documentation says is there, is there."""
