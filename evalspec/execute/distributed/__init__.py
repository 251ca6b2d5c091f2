"""A forest spread over the workers of a Ray cluster: what is shipped, what a worker does, who gets which piece."""
