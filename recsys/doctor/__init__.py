"""Is this installation sound? Versions, what torchrec really does here, and every table against its definition.

versions.py    what is installed, what was tested together, and combinations that are known to break
isolation.py   work done in processes that may die, on one rank or on several
facts.py       the limits of torchrec and fbgemm that our backends are built around
probes.py      each of them, shown by running it
cells.py       the parity matrix: which cells there are, and the committed list of those that are refused
parity.py      one cell run: a table trained in one way, beside its oracle
diagnosis.py   all of it, judged
"""
