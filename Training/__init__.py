"""How it is trained: data sets, transforms, evaluation, arguments, and what a run leaves."""
