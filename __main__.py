"""`python -m dtrap` runs the `dtrap` command."""

from .cli import main

if __name__ == "__main__":
    main()
