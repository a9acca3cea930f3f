"""Pruning: Hessians, Optimal Brain Surgeon, the database of solutions, sequential pruning."""
