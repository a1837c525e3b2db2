"""`python -m cwsink.demo`, the same as `cwsink demo`."""

import sys

from cwsink.demo import main

if __name__ == "__main__":
    sys.exit(main())
