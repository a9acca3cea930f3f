"""One module per DVC stage: read parameters and inputs, call the library, write outputs."""

from tasks.runtime.environment import prepare

prepare()
