"""How important each unit of a channel group is: one file a criterion, named in `automl.compression.selection`."""
