"""`make bench`: what evalspec gains by its design, as ratios measured in one run."""

from benchmarks import sharing

if __name__ == "__main__":
    sharing.main()
