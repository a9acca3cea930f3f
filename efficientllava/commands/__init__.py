"""What the console script does: prune, estimate what pruning takes, look at the machine."""
