"""Prefect flows over the stages that dvc.yaml declares, logged to MLflow.

Nothing here does mathematics or knows a file format of the method, and nothing phones home.
"""

from tasks.runtime.environment import prepare

prepare()
