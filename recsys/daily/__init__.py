"""The daily job: a model trained day by day, each one tested on the next day before it is trained on, and promoted.

    OUT/NAME/2026-01-02/         the run of that day, started from the one before it: a run like any other
             tested/2026-01-03.json   what the newest model and the promoted one scored on that day, and what followed
             report.jsonl        a line for each day: the series
             index.html          the same to look at
             promoted.json       the promoted run; written last

Not here: the commands (`recsys.cli.daily`), preparing (`features.days`), training (`recsys.run`).
"""
