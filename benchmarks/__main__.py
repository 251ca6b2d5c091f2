"""`make bench`: what evalspec gains by its design, as ratios measured in one run.

The arguments are those of `python -m benchmarks.harness`.
"""

import sys

from benchmarks import harness, sharing

if __name__ == "__main__":
    sharing.main([])
    print(flush=True)
    sys.exit(harness.main())
