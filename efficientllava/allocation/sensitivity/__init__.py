"""Ratios by the sensitivity of every matrix: Fisher costs, exact knapsack, correction, choice."""
