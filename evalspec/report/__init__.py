"""Results into one self-contained HTML page."""
