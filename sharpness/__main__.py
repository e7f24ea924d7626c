"""``python -m sharpness`` is the command ``sharpness``."""

from sharpness.cli import main

if __name__ == "__main__":
    main()
