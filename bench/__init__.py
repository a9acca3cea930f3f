"""Experiments that measure the method; their outcome is in docs/results.md."""

from tasks.runtime.environment import prepare

prepare()
