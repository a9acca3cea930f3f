"""Tables, plots and the page made from the record files that the stages leave."""
