"""The database: the OBS solution of every matrix at every level: build, storage, offload."""
