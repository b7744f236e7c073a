"""The same random weights in our parts and in the libraries that define them: equal outputs, losses and gradients."""
