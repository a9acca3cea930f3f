"""The numbers that decide: a model's summary, paired differences, what to deploy."""
