"""``python -m axcore`` is the command ``axcore``."""

from .cli import main

if __name__ == "__main__":
    main()
