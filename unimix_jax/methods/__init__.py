"""The parts of long-tail methods: losses, mixing, changes of trained logits, and the recipes that combine them."""
