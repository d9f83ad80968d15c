"""`python -m synthoma` is `synthoma`."""

from synthoma.cli import main

if __name__ == "__main__":
    main()
