"""Two processes over gloo against one."""
