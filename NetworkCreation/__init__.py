"""What is trained: the activation γ, the recurrent layers, and the models around them."""
