"""MLflow: what is logged of each model, runs, versions and the champion."""
