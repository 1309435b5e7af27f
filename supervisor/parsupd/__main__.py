"""`python -m parsupd`."""

from parsupd.app import main

if __name__ == "__main__":
    main()
