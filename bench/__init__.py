"""Experiments that measure the method; their outcome is in docs/results.md."""

from tasks.environment import prepare

prepare()
