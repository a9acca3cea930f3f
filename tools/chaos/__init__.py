"""Kills, full disks and wiped records in every stage of the pipeline: `python -m tools.chaos`."""
