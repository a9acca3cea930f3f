"""The paper's search as published: policies, their evolution by rounds, and the projector's."""
