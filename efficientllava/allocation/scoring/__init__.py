"""Scoring candidates: in threads of this process, in processes, or on Dask's workers."""
