"""`python -m recsys.cli`, for instance under torchrun."""

from recsys.cli import main

if __name__ == "__main__":
    main()
