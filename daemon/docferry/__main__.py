"""The way in: `docferry` and `python -m docferry`."""

import sys


def main() -> int:
    """What the installed command calls."""
    from docferry.cli.main import main as speak  # here, so that `--version` pays for nothing it does not need

    return speak(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
