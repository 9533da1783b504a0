"""What the programs share: steps, their times, what the compiler says of them, and how results are kept and shown."""
