"""One module per DVC stage: read parameters and inputs, call the library, write outputs."""

from tasks.environment import prepare

prepare()
