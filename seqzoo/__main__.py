"""`python -m seqzoo`: the command line of train.py, for an installed package."""

from seqzoo.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
