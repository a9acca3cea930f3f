"""What was timed, as a part of the report: the table, the plot, and the part of the page."""
