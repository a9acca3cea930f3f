"""The tables and figures of the paper, measured over seeds, in the paper's layout."""
