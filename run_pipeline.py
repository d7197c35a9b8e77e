"The same as the command `two_tower_vs`, for those who run it from a checkout."

import sys

from two_tower_vs.cli import main

if __name__ == '__main__':
    sys.exit(main())
