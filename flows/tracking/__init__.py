"""MLflow: records of each model, runs, versions and the champion."""
