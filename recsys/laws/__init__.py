"""Conformance laws as plain functions: what every table, model and index keeps, ours or a stranger's.

A law raises AssertionError saying what was broken. `tests/laws` runs them over all of ours, `recsys laws` over a
user's.
"""
