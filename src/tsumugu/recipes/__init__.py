"""Recipes of runs that train on an ordinary machine in minutes: YAML files, found by their names."""
