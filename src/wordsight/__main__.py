"""Where the command line begins: `wordsight`, `python -m wordsight`, and what launchers start, as in
`accelerate launch -m wordsight fit ...`."""

import sys


def main() -> int:
    """As `wordsight.cli.main`, which takes a fifth of a second to import and may be stopped in it."""
    try:
        from wordsight import cli
    except KeyboardInterrupt:
        print("\nwordsight: stopped", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
