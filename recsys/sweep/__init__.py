"""A sweep: every table method at every budget, trained as ordinary runs, compared at equal served bytes.

    plan      which cells there are, and the run config of each      cell      one cell: train, evaluate, measure
    process   a cell in a process of its own                         outcome   what is kept of a cell
    folder    OUT: what is done, what is not                         summary   means, fronts, recommendations
    page      OUT/index.html and the rows for a terminal

Choices are made by the validation metric; the test metric is shown beside it and chooses nothing.
"""
