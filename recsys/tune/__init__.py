"""Searching a config's settings by their validation metric, as `recsys tune` does.

space      which settings may take which values        sampler    what a trial tries, and when it is given up (Optuna)
trial      one trial on disk                           study      OUT: what is done, and the loop that does the rest
best       the best trial as overrides and as a config
"""
