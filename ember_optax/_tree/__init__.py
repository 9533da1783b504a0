"""Parameter trees: the names of their leaves, the boxes around them, and which leaves are token tables with which axes."""
