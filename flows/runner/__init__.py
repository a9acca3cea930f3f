"""Runs stages: the graph read from DVC, one Prefect task a stage, its process and live view."""
