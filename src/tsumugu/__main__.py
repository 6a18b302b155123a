"""``python -m tsumugu`` is the same program as ``tsumugu``."""

from tsumugu.cli import main

if __name__ == "__main__":
    main()
