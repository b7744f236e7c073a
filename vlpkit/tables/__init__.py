"""Tables of outside checkpoints: their key names beside ours, as rows for `vlpkit.weights`. One file a family of names;
a function's arguments say where in our model the weights go, and how the outside stack is divided between our parts."""
