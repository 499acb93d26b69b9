"""Tests of the networks, of their training and of the analysis."""
