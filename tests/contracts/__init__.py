"""What every file of an extension folder promises; a new file is tested on arrival."""
