"""`python -m rallypoint`: the command line, where its script is not on the path."""

from rallypoint.cli.main import main

if __name__ == "__main__":
    main()
