"""The search: policy space, structural risk, evolution, projector."""
