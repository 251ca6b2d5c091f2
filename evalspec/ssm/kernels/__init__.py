"""The recurrences themselves: for each a short reference to check by eye, and the fast forms that must equal it."""
