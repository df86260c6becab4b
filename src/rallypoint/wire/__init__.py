"""What nodes and coordinators say to each other: typed, bounded and versioned (R12)."""
