"""Readers and splits of the data sets of the paper."""
