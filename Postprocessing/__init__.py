"""What is learnt from the saved runs: analysis, plots, notebooks, figures."""
