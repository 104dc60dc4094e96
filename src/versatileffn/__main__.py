"""`python -m versatileffn`: the command line."""

from versatileffn.cli.main import main

if __name__ == "__main__":
    main()
