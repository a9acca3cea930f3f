"""Commands of the console script: prune, estimate memory and time, look at the machine."""
