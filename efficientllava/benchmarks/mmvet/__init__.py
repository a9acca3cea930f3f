"""MM-Vet: open questions, graded by a judge."""
