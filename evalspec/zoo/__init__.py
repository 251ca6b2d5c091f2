"""The small models that ship with evalspec, and the code that trains them again."""
