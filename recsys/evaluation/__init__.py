"""How good a model is: ranked lists, scored rows, intervals, and the `Report` that holds them."""
