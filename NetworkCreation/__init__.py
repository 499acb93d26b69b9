"""The activation γ, recurrent layers, and models."""
