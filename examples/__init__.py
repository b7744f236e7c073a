"""Parts and objectives that live outside the package; the README's commands use them."""
