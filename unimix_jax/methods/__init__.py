"""What a long-tail method is made of: losses, mixing, and the rows that combine them."""
