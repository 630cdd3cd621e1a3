"""``python -m meshlib``: the command line, where the script ``mesh`` is not on the path."""

from meshlib.cli import main

if __name__ == "__main__":
    main()
