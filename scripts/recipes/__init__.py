"""Experiments of many trainings, from configs to one report."""
