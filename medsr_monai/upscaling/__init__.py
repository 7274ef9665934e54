"""The product: a coarse scan goes in, a finer one comes out at the same place, with a record of what was done."""
