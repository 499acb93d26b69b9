"""Tests of the networks, their training and the analysis."""
