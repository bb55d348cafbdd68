"""`python -m clipcap` is the command `clipcap`: torchrun starts modules."""

from flows.cli import main

if __name__ == "__main__":
    main()
