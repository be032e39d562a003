"""Networks: layers, residual networks, their initial values."""
