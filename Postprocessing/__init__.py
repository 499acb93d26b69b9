"""Analysis of saved runs: commands, plots, notebooks, figures."""
