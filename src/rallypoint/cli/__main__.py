"""`python -m rallypoint.cli` is `rallypoint`, where no scripts are installed."""

from rallypoint.cli.main import main

if __name__ == "__main__":
    main()
