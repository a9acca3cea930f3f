"""Versions that MLflow holds: weights fetched from DVC, loaded by pyfunc, compared, promoted."""
