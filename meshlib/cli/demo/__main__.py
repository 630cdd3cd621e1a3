"""``python -m meshlib.cli.demo``: the demo without the command line's libraries."""

from meshlib.cli.demo.scenes import main

if __name__ == "__main__":
    main()
