"""`python -m seqzoo`: the same command line as train.py, where there is no checkout."""

from seqzoo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
