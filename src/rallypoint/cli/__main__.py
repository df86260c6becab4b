"""`python -m rallypoint.cli`: the command `rallypoint` if its script is not installed."""

from rallypoint.cli.main import main

if __name__ == "__main__":
    main()
