"""What a step costs: time, memory, and what it sends."""
