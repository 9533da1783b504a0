"""Parameter trees: the names of their leaves, the boxes around them, which leaves are token tables, and their axes."""
