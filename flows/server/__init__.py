"""Prefect's server, workspaces beside this one, and the Dask cluster of a run."""
