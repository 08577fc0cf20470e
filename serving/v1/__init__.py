"""Generated from protos/serving/v1 by `make proto`; never edited, and a test regenerates and compares."""
