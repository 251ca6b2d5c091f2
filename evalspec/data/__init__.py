"""Rows: from files, SQL, the hub, or generated worlds."""
