"""Walking the forest on a backend: from requests to results."""
